/* What happens when memory of a pool is not there: a load or store that meets a page of poison, a page past the end of a
 * file that was cut, or a hole that a full file system can't fill, is SIGBUS.
 *
 * The handler puts a private page of zeros in the place of the missing one, so that the instruction goes on, and counts
 * the fault. faults.py makes the operation fail that met it, and maps the pool's own page again. Faults outside watched
 * memory, and signals that somebody sent, go to the handlers that were there before.
 *
 * mmap(2) in a signal handler: POSIX does not list it; on Linux it is a system call and takes no lock of the C library.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))

enum { PAGES = 32, HANDLERS = 16 };

/* Watched memory. faults.py owns it, sets `begin` to `unit`, reads what the handler has counted,
 * and sets `faults`, `low` and `high` to 0 when it has mapped the pool's own pages again. */
struct watch {
	uint64_t faults;       /* since faults.py has set it to 0 */
	uint64_t low, high;    /* addresses between which they all lie */
	uint64_t pages[PAGES]; /* addresses of the first ones */
	uint64_t begin, end;   /* addresses */
	uint64_t unit;         /* bytes: what is replaced at once, no less than mmap(2) can */
	struct watch *next;
};

static struct watch *watches;

/* The handlers that were there before, the oldest first. One that was installed over ours may call ours when it has done
 * its work, or raise the signal anew: ours then calls the one before it. `below` counts those that were not called yet. */
static struct sigaction before[HANDLERS];
static int handlers, below;

static struct watch *find(uint64_t address) {
	for (struct watch *watch = watches; watch != NULL; watch = watch->next)
		if (watch->begin <= address && address < watch->end)
			return watch;
	return NULL;
}

/* Put zeros in the place of the page at `address`; 0, or -1 if the mapping can't be cut there. */
static int replace(struct watch *watch, uint64_t address) {
	uint64_t page = address - (address - watch->begin) % watch->unit;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
	if (mmap((void *)page, watch->unit, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
		return -1;
	if (watch->faults < PAGES)
		watch->pages[watch->faults] = page;
	if (watch->faults == 0 || page < watch->low)
		watch->low = page;
	if (watch->faults == 0 || page + watch->unit > watch->high)
		watch->high = page + watch->unit;
	watch->faults++;
	return 0;
}

/* Call the next handler below ours; after the oldest, the default action takes the place of ours: it ends the process
 * when the instruction is tried again, or at once if the signal was sent. A fault that comes back at the same address was
 * not mended by the handler that returned, and goes to the one before it. */
static void pass_on(int number, siginfo_t *info, void *context) {
	static const struct sigaction none = {.sa_handler = SIG_DFL};
	static void *last;
	static int repeated;
	if (info->si_code > 0) {
		repeated = info->si_addr == last ? repeated + 1 : 0;
		last = info->si_addr;
		below = repeated < handlers ? handlers - repeated : 0;
	}
	const struct sigaction *next = below > 0 ? &before[--below] : &none;
	if (next->sa_flags & SA_SIGINFO) {
		next->sa_sigaction(number, info, context);
	} else if (next->sa_handler == SIG_DFL || (next->sa_handler == SIG_IGN && info->si_code > 0)) {
		sigaction(SIGBUS, &none, NULL);
		if (info->si_code <= 0)
			raise(number);
	} else if (next->sa_handler != SIG_IGN) {
		next->sa_handler(number);
	}
	below = handlers;
}

static void on_sigbus(int number, siginfo_t *info, void *context) {
	int saved = errno;
	uint64_t address = (uint64_t)(uintptr_t)info->si_addr;
	struct watch *watch = info->si_code > 0 ? find(address) : NULL;
	if (watch == NULL || replace(watch, address) != 0) {
		if (watch != NULL) {
			static const char text[] = "daxfs: memory of the pool is gone, and this device can't map other pages there\n";
			ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
			(void)ignored;
		}
		pass_on(number, info, context);
	}
	errno = saved;
}

/* Have SIGBUS go through the handler above; 0 or an errno. A handler that was installed over it comes below it. */
EXPORTED int guard_install(void) {
	struct sigaction now, wanted = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
	if (sigaction(SIGBUS, NULL, &now) != 0)
		return errno;
	if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_sigbus)
		return 0;
	for (int known = 0; known < handlers; known++)
		if (before[known].sa_sigaction == now.sa_sigaction) {
			memmove(&before[known], &before[known + 1], sizeof now * (size_t)(--handlers - known));
			break;
		}
	if (handlers == HANDLERS)
		return ENOSPC;
	before[handlers] = now;
	sigemptyset(&wanted.sa_mask);
	below = ++handlers;
	return sigaction(SIGBUS, &wanted, NULL) != 0 ? errno : 0;
}

EXPORTED void guard_unwatch(struct watch *watch) {
	for (struct watch **link = &watches; *link != NULL; link = &(*link)->next)
		if (*link == watch) {
			*link = watch->next;
			return;
		}
}

/* Watch a mapping from now on; 0 or an errno. One that was watched at the same addresses has ended. */
EXPORTED int guard_watch(struct watch *watch) {
	int number = guard_install();
	if (number != 0)
		return number;
	for (struct watch *other = watches, *next; other != NULL; other = next) {
		next = other->next;
		if (other->begin < watch->end && watch->begin < other->end)
			guard_unwatch(other);
	}
	watch->next = watches;
	watches = watch;
	return 0;
}
