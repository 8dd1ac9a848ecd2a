/* sigaction(2) and signal(2): the library keeps a handler of SIGBUS (guard.h) that the program does not see. */
#include "calls.h"

#include <signal.h>

#include "guard.h"

typedef void (*handler)(int);

PUBLIC int sigaction(int number, const struct sigaction *wanted, struct sigaction *old) {
    if (number == SIGBUS && (likely(pl_started) || (pl_start(), true)))
        return pl_program_sigbus(wanted, old);
    return REAL(sigaction)(number, wanted, old);
}

static handler set(handler wanted, int flags) {
    struct sigaction action = {.sa_handler = wanted, .sa_flags = flags}, old;

    return pl_program_sigbus(&action, &old) ? SIG_ERR : old.sa_handler;
}

PUBLIC handler signal(int number, handler wanted) {
    return number == SIGBUS && pl_started ? set(wanted, SA_RESTART) : REAL(signal)(number, wanted);
}

PUBLIC handler __sysv_signal(int number, handler wanted) {
    return number == SIGBUS && pl_started ? set(wanted, (int)SA_RESETHAND | SA_NODEFER)
                                          : REAL(__sysv_signal)(number, wanted);
}

ALSO(__sigaction, sigaction);
ALSO(bsd_signal, signal);
ALSO(ssignal, signal);
ALSO(sysv_signal, __sysv_signal);
