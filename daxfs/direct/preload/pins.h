/* Pins of threads that are inside a file's memory, and the gate that keeps threads out.
 *
 * Two rules keep memory from being used after it was given back (DAXFS_RENEW):
 * - A thread that uses the memory first raises a counter and then checks that the gate is open. A thread that renews
 *   first shuts the gate and then checks that all counters are 0. At least one of the two sees the other.
 * - No thread waits without a limit: the pin may belong to the waiting thread itself, which then runs a signal handler.
 */
#ifndef DAXFS_PINS_H
#define DAXFS_PINS_H

#include "file.h"

#pragma GCC visibility push(hidden)

/* Enter the memory of the file, none of which is given back until pl_unpin. False: make the system call. */
bool pl_pin(int fd, struct pl_file *file);
/* Keep the memory of a file that is held mapped, whether the gate is open or shut. */
void pl_pin_held(struct pl_file *file);
/* Leave the memory of the file. */
void pl_unpin(struct pl_file *file);
/* Whether this thread is inside the memory of any file. A caller that is inside runs in a signal handler. */
bool pl_is_inside(void);

/* Shut the gate. False: it is shut already. */
bool pl_shut_gate(struct pl_file *file);
/* Open the gate that this thread has shut. */
void pl_open_gate(struct pl_file *file);
/* Wait a moment for all pins to go; the gate is shut. False: some pins stay. */
bool pl_drained(struct pl_file *file);
/* Shut the gate, and wait for all threads that are inside or have shut it. False: this thread itself is one of them,
 * and runs a signal handler. */
bool pl_shut_out(struct pl_file *file);

/* Add `change` to the number of mappings. False: the gate is shut, so there may be no new mapping now. */
bool pl_mapping(struct pl_file *file, int change);

/* Prepare for the close of the file's last descriptor. */
void pl_last_close(int fd, struct pl_file *file);
/* Remove pins and gate in a child of fork(2), where the threads that would remove them are gone. */
void pl_free_pins(struct pl_file *file);

#pragma GCC visibility pop

#endif
