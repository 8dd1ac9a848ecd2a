/* Who is inside a file's memory: pins, and the gate that keeps them out.
 *
 * Two rules keep memory from being used after it was given back (DAXFS_RENEW):
 * - A user of the memory raises a counter first and then looks whether the gate is open. Whoever renews shuts the gate
 *   first and then looks whether all counters are 0. One of the two sees the other.
 * - Nobody waits without a limit: the thread that holds a pin may be the very one that runs this, in a signal handler.
 */
#ifndef DAXFS_PINS_H
#define DAXFS_PINS_H

#include "file.h"

#pragma GCC visibility push(hidden)

/* Enter the memory of the file: until pl_unpin nothing of it is given back. False: make the system call. */
bool pl_pin(int fd, struct pl_file *file);
/* Keep the memory of a file that is held mapped, whether the gate is open or not. */
void pl_pin_held(struct pl_file *file);
void pl_unpin(struct pl_file *file);
/* Whether this thread is inside the memory of any file: it runs a signal handler then. */
bool pl_is_inside(void);

/* Shut the gate. False: it is shut already. */
bool pl_shut_gate(struct pl_file *file);
void pl_open_gate(struct pl_file *file);
/* With the gate shut: wait a moment for the pins to go. False: some stay. */
bool pl_drained(struct pl_file *file);
/* Shut the gate and wait for all who are inside, or who have shut it. False: that is this thread, in a signal handler.
 */
bool pl_shut_out(struct pl_file *file);

/* Count a mapping more or less. False: the gate is shut, so no new mapping now. */
bool pl_mapping(struct pl_file *file, int change);

/* The file's last descriptor is about to be closed. */
void pl_last_close(int fd, struct pl_file *file);
/* In a child of fork(2), where other threads' pins and gates have nobody to take them back. */
void pl_free_pins(struct pl_file *file);

#pragma GCC visibility pop

#endif
