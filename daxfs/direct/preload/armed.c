/* How many appends are armed follows their use: twice as many when all were used, else as many as were. If none was, the
 * file is one that others look at all the time: the next attempt comes later and later.
 *
 * The times of an armed append are those of its arming, so it is used for a second only.
 */
#include "armed.h"

#include "copy.h"
#include "stores.h"

#define FIRST 8           /* appends that are armed the first time */
#define KEEPS 1000        /* ms for which armed appends are used */
#define REFUSALS 2        /* answers without any, one after the other, after which it does not try on */
#define PENALTY_MOST 255U /* the most appends by requests until the next attempt */

static bool usable(const struct pl_file *file, uint64_t size, size_t total) {
    const struct pl_armed *armed = &file->appends.armed;

    return armed->next < armed->count && total == armed->step && size == armed->size &&
           !atomic_load(&file->mappings) && pl_holds(file) && pl_now() < armed->expires &&
           __atomic_load_n(&file->entry->changes, __ATOMIC_ACQUIRE) == armed->changes;
}

bool pl_fire(struct pl_file *file, uint64_t size, size_t total) {
    struct pl_armed *armed = &file->appends.armed;
    const struct daxfs_commit_word *word;
    uint32_t *place, before;

    if (!usable(file, size, total))
        return false;
    word = &armed->words[armed->next];
    before = word->armed;
    place = (uint32_t *)(void *)(file->mount->base + word->pool_offset);
    if (!__atomic_compare_exchange_n(place, &before, word->valid, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        armed->count = armed->next; /* the daemon has taken over */
        return false;
    }
    if (file->mount->pool.persistence == DAXFS_LINES)
        pl_write_back((const char *)place, sizeof(*place));
    armed->next++;
    armed->size += total;
    file->fired_changes = armed->changes;
    atomic_store(&file->fired, armed->size);
    return true;
}

static void punish(struct pl_armed *armed) {
    armed->penalty = armed->penalty * 2 + 1;
    if (armed->penalty > PENALTY_MOST)
        armed->penalty = PENALTY_MOST;
    armed->patience = armed->penalty;
    armed->next = armed->count = armed->given = armed->wanted = armed->refused = 0;
}

uint32_t pl_worth_arming(struct pl_file *file) {
    struct pl_armed *armed = &file->appends.armed;

    if (atomic_load(&file->mappings))
        return 0;
    if (armed->patience) {
        armed->patience--;
        return 0;
    }
    if (armed->given && !armed->next) {
        punish(armed);
        return 0;
    }
    if (armed->given && armed->next == armed->given)
        armed->wanted = 2 * armed->wanted, armed->penalty = 0;
    else if (armed->given || !armed->wanted)
        armed->wanted = armed->given ? armed->next : FIRST;
    if (armed->wanted > DAXFS_COMMIT_WORDS)
        armed->wanted = DAXFS_COMMIT_WORDS;
    return armed->wanted;
}

void pl_take_armed(struct pl_file *file, const struct daxfs_armed *answer, uint64_t step) {
    struct pl_armed *armed = &file->appends.armed;

    armed->next = armed->count = armed->given = 0;
    if (!answer || !answer->count) {
        /* At the end of what was granted there is none, and none is used up. */
        if (armed->refused++ >= REFUSALS)
            punish(armed);
        return;
    }
    armed->refused = 0;
    for (uint32_t i = 0; i < answer->count; i++) {
        if (answer->words[i].pool_offset > file->mount->mapped - sizeof(uint32_t))
            break;
        armed->words[i] = answer->words[i];
        armed->count = armed->given = i + 1;
    }
    armed->step = step;
    armed->size = answer->size;
    armed->changes = answer->changes;
    armed->expires = pl_now() + KEEPS;
    atomic_store(&file->fired, 0);
}
