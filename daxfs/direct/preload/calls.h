/* The functions that programs call in place of the C library's (calls_*.c).
 *
 * A descriptor of another file system costs one load. Only the program calls these functions: the files of this layer
 * share no functions with each other, only the declarations in this header.
 */
#ifndef DAXFS_CALLS_H
#define DAXFS_CALLS_H

#include "file.h"
#include "start.h"

#pragma GCC visibility push(hidden)

/* Define another name of the same function (off_t has 64 bits). */
#define ALSO(name, of) PUBLIC __typeof__(of) name __attribute__((alias(#of), copy(of)))

/* The C library's function that ends a program whose buffer is too small. */
extern void __chk_fail(void) __attribute__((noreturn, visibility("default")));

#pragma GCC visibility pop

#endif
