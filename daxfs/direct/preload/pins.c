/* Each thread uses one of four counters of a file, so that threads rarely share a cache line. */
#include "pins.h"

#include <fcntl.h>
#include <sched.h>

#include "process.h"
#include "stores.h"

#define PATIENT_YIELDS 1000000 /* after so many yields the thread that has shut the gate must be waiting for this one */
#define YIELDS 200             /* after so many yields a pin must be waiting for this thread */

static _Atomic unsigned threads;
static PL_THREAD unsigned stripe; /* 1 ... PL_STRIPES, 0: none yet */
static PL_THREAD int depth;       /* pins of this thread */
static PL_THREAD int shut;        /* gates that this thread has shut */

static _Atomic int *my_pins(struct pl_file *file) {
    if (unlikely(!stripe))
        stripe = 1 + atomic_fetch_add(&threads, 1) % PL_STRIPES;
    return &file->stripes[stripe - 1].pins;
}

static bool no_pins(struct pl_file *file) {
    int sum = 0;

    for (int i = 0; i < PL_STRIPES; i++)
        sum |= atomic_load(&file->stripes[i].pins);
    return sum == 0;
}

static void wait_a_moment(void) {
    if (!pl_filtered)
        sched_yield();
}

/* Pins that stay are this thread's own, if it runs a signal handler, or those of very long copies. */
bool pl_drained(struct pl_file *file) {
    for (int i = 0; i < YIELDS; i++) {
        if (no_pins(file))
            return true;
        if (depth)
            return false;
        wait_a_moment();
    }
    return false;
}

/* Close the spare descriptor if the last pin is gone. */
static void close_spare(struct pl_file *file) {
    int spare = atomic_load(&file->spare);

    if (spare < 0 || !no_pins(file) || !atomic_compare_exchange_strong(&file->spare, &spare, -1))
        return;
    pl_notify(spare, file);
    pl_call(SYS_close, spare);
    pl_drop(file);
}

bool pl_pin(int fd, struct pl_file *file) {
    if (pl_foreign())
        return false;
    depth++;
    atomic_fetch_add(my_pins(file), 1);
    if (likely(!atomic_load(&file->gate) && atomic_load(&pl_table[fd]) == file))
        return true;
    pl_unpin(file);
    return false;
}

void pl_pin_held(struct pl_file *file) {
    depth++;
    atomic_fetch_add(my_pins(file), 1);
}

void pl_unpin(struct pl_file *file) {
    atomic_fetch_sub(my_pins(file), 1);
    depth--;
    if (unlikely(atomic_load(&file->spare) >= 0))
        close_spare(file);
}

bool pl_is_inside(void) {
    return depth;
}

bool pl_shut_gate(struct pl_file *file) {
    int open = 0;

    if (!atomic_compare_exchange_strong(&file->gate, &open, 1))
        return false;
    shut++;
    return true;
}

void pl_open_gate(struct pl_file *file) {
    atomic_store(&file->gate, 0);
    shut--;
}

bool pl_shut_out(struct pl_file *file) {
    for (int i = 0, open = 0; i < PATIENT_YIELDS && !depth && !shut; i++, open = 0) {
        if (!atomic_compare_exchange_strong(&file->gate, &open, 1)) {
            wait_a_moment();
            continue;
        }
        while (!no_pins(file))
            wait_a_moment();
        file->shut_out = true;
        return true;
    }
    return false;
}

bool pl_mapping(struct pl_file *file, int change) {
    atomic_fetch_add(&file->mappings, change);
    if (change < 0 || !atomic_load(&file->gate))
        return true;
    atomic_fetch_sub(&file->mappings, change);
    return false;
}

/* The kernel must not release the file during a copy: a spare descriptor keeps it open until the last pin goes. */
void pl_last_close(int fd, struct pl_file *file) {
    int spare;

    if (pl_drained(file))
        return;
    spare = pl_filtered ? -1 : (int)pl_call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 256);
    if (spare < 0 && !pl_filtered)
        spare = (int)pl_call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3);
    atomic_fetch_add(&file->references, 1);
    if (spare < 0) {
        /* No descriptor is free: wait for other threads. A signal handler can't wait; then the object is never used
         * again, so that the interrupted copy can't go to another file's memory. */
        while (!depth && !no_pins(file))
            wait_a_moment();
        if (!depth)
            pl_drop(file);
        return;
    }
    atomic_store(&file->spare, spare);
    if (no_pins(file))
        close_spare(file);
}

void pl_free_pins(struct pl_file *file) {
    if (!depth)
        for (int i = 0; i < PL_STRIPES; i++)
            atomic_store(&file->stripes[i].pins, 0);
    atomic_store(&file->gate, 0);
    if (atomic_load(&file->spare) >= 0)
        close_spare(file);
}
