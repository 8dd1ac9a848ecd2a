/* The child has no other threads, so their pins and gates are removed. If this thread itself is inside a copy (a fork
 * in a signal handler), the child leaves the files to the kernel.
 */
#include "fork.h"

#include "pins.h"
#include "process.h"

void pl_before_fork(void) {
    for (int i = 0; i < PL_FILES; i++)
        if (atomic_load(&pl_files[i].references) && atomic_load(&pl_files[i].mappings))
            atomic_store(&pl_files[i].shared, true);
}

void pl_after_fork_child(void) {
    pl_new_holder();
    for (int i = 0; i < PL_FILES; i++) {
        struct pl_file *file = &pl_files[i];

        if (!atomic_load(&file->references))
            continue;
        if (pl_is_inside())
            atomic_store(&file->refused, true);
        pl_forget_extents(file);
        atomic_store(&file->stored, false);
        pl_forget_appends(file);
        pl_free_pins(file);
    }
}

bool pl_own_process(void) {
    if (pl_foreign())
        return false;
    if (pl_is_holder())
        return true;
    pl_after_fork_child();
    return false;
}
