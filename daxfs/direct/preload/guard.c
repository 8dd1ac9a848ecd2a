/* The handler is installed when the first pool is mapped, with the flags and the mask of the program's own, so that the
 * kernel does for the program's handler what it would do without the library. mmap(2) and sigaction(2) take no locks.
 */
#include "guard.h"

#include <errno.h>
#include <setjmp.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "copy.h"
#include "process.h"

#define GUARDS 64

struct guard {
    _Atomic uintptr_t base; /* 0: free */
    size_t size;
    _Atomic bool *missing;
};

/* Where to go on if memory in [low, high) is missing. */
struct escape {
    uintptr_t low, high;
    sigjmp_buf place;
};

int (*pl_real_sigaction)(int, const struct sigaction *, struct sigaction *);

static struct guard guards[GUARDS];
static struct sigaction actions[2]; /* the program's is actions[current] */
static _Atomic int current;
static _Atomic bool installed;
static PL_THREAD struct escape *volatile escape;

static struct sigaction *program(void) {
    return &actions[atomic_load(&current)];
}

static void set_program(const struct sigaction *action) {
    int next = !atomic_load(&current);

    actions[next] = *action;
    atomic_store(&current, next);
}

static bool has_handler(const struct sigaction *action) {
    return action->sa_flags & SA_SIGINFO || (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN);
}

/* Put zeros in the place of the pool that contains the address. */
static bool replace(uintptr_t address) {
    for (int i = 0; i < GUARDS; i++) {
        uintptr_t base = atomic_load(&guards[i].base);

        if (!base || address < base || address - base >= guards[i].size)
            continue;
        atomic_store(guards[i].missing, true);
        return pl_call(SYS_mmap, base, guards[i].size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0L) == (long)base;
    }
    return false;
}

/* Let the program have the signal. The default action comes when the instruction, or the signal, is tried again. */
static void pass_on(int number, siginfo_t *info, void *context) {
    struct sigaction action = *program(), standard = {.sa_handler = SIG_DFL};
    bool fault = info->si_code > 0;

    if (has_handler(&action)) {
        if (action.sa_flags & (int)SA_RESETHAND)
            set_program(&standard);
        if (action.sa_flags & SA_SIGINFO)
            action.sa_sigaction(number, info, context);
        else
            action.sa_handler(number);
    } else if (fault || action.sa_handler == SIG_DFL) {
        pl_real_sigaction(SIGBUS, &standard, NULL);
        if (!fault)
            pl_call(SYS_tgkill, pl_call(SYS_getpid), pl_call(SYS_gettid), number);
    }
}

static void on_sigbus(int number, siginfo_t *info, void *context) {
    uintptr_t address = (uintptr_t)info->si_addr;
    struct escape *way = escape;
    int saved = errno;

    if (info->si_code > 0 && way && way->low <= address && address < way->high) {
        escape = NULL;
        pthread_sigmask(SIG_SETMASK, &((ucontext_t *)context)->uc_sigmask, NULL);
        siglongjmp(way->place, 1);
    }
    if (info->si_code > 0 && replace(address)) {
        errno = saved;
        return;
    }
    errno = saved;
    pass_on(number, info, context);
}

/* Install the handler with what the program wants for its own. Return 0, or -1 with errno. */
static int install(const struct sigaction *wanted) {
    struct sigaction action = {.sa_flags = SA_ONSTACK | SA_RESTART};

    if (has_handler(wanted))
        action = *wanted;
    action.sa_flags = (action.sa_flags | SA_SIGINFO) & ~(int)SA_RESETHAND;
    action.sa_sigaction = on_sigbus;
    return pl_real_sigaction(SIGBUS, &action, NULL);
}

void pl_guard(char *base, size_t size, _Atomic bool *missing) {
    uintptr_t none = 0;

    if (pl_real_sigaction && !atomic_exchange(&installed, true)) {
        struct sigaction before;

        if (!pl_real_sigaction(SIGBUS, NULL, &before)) {
            set_program(&before);
            install(&before);
        }
    }
    for (int i = 0; i < GUARDS; i++, none = 0) {
        if (!atomic_compare_exchange_strong(&guards[i].base, &none, UINTPTR_MAX))
            continue;
        guards[i].size = size;
        guards[i].missing = missing;
        atomic_store(&guards[i].base, (uintptr_t)base);
        return;
    }
}

void pl_unguard(const char *base) {
    for (int i = 0; i < GUARDS; i++)
        if (atomic_load(&guards[i].base) == (uintptr_t)base)
            atomic_store(&guards[i].base, 0);
}

bool pl_guarded_write_back(const char *address, size_t length) {
    struct escape way = {.low = (uintptr_t)address & ~63UL, .high = (uintptr_t)address + length};

    if (sigsetjmp(way.place, 0))
        return false;
    escape = &way;
    pl_write_back(address, length);
    escape = NULL;
    return true;
}

int pl_program_sigbus(const struct sigaction *wanted, struct sigaction *old) {
    struct sigaction before = *program();

    if (!atomic_load(&installed) || pl_foreign())
        return pl_real_sigaction(SIGBUS, wanted, old);
    if (wanted) {
        struct sigaction action = *wanted;

        set_program(&action);
        if (install(&action)) {
            set_program(&before);
            return -1;
        }
    }
    if (old)
        *old = before;
    return 0;
}
