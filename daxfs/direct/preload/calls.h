/* The functions that programs call in place of the C library's (calls_*.c).
 *
 * A descriptor that is no file of daxfs costs one load. Nobody calls what is defined there but the program: the files
 * of this layer share no functions, only what is declared here.
 */
#ifndef DAXFS_CALLS_H
#define DAXFS_CALLS_H

#include "file.h"
#include "start.h"

#pragma GCC visibility push(hidden)

/* Another name of the same function (off_t has 64 bits). */
#define ALSO(name, of) PUBLIC __typeof__(of) name __attribute__((alias(#of), copy(of)))

/* The C library's: the end of a program whose buffer is too small. */
extern void __chk_fail(void) __attribute__((noreturn, visibility("default")));

#pragma GCC visibility pop

#endif
