/* What happens when memory of a pool is not there: a load or store that meets a page of poison, a page past the end of a
 * file that was cut, or a hole that a full file system can't fill, is SIGBUS.
 *
 * The handler puts a private page of zeros in the place of the missing one, so that the instruction goes on, and counts
 * the fault. faults.py makes the operation fail that met it, and maps the pool's own page again. Faults outside watched
 * memory, and signals that somebody sent, go to the handler that was there before.
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

enum { WATCHES = 64, PAGES = 32 };

/* Watched memory. faults.py reads `faults` and the words after it. */
struct watch {
	uint64_t faults;       /* since the last guard_restore */
	uint64_t low, high;    /* addresses between which they all lie */
	uint64_t pages[PAGES]; /* addresses of the first ones */
	uint64_t begin, end;   /* addresses; 0: this watch is free */
	uint64_t unit;         /* bytes: what mmap(2) can replace */
	uint64_t number;       /* of all watches ever: tells this one from another in the same place */
};

static struct watch watches[WATCHES];
static struct sigaction before;
static int installed;
static uint64_t last_number;

static struct watch *find(uint64_t address) {
	for (struct watch *watch = watches; watch < watches + WATCHES; watch++)
		if (watch->begin <= address && address < watch->end)
			return watch;
	return NULL;
}

/* Put zeros in the place of the page at `address`; 0, or -1 if the mapping can't be cut there. */
static int replace(struct watch *watch, uint64_t address) {
	uint64_t page = address - address % watch->unit;
	if (mmap((void *)page, watch->unit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
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

static void on_sigbus(int number, siginfo_t *info, void *context) {
	int saved = errno;
	uint64_t address = (uint64_t)(uintptr_t)info->si_addr;
	struct watch *watch = info->si_code > 0 ? find(address) : NULL;
	if (watch != NULL && replace(watch, address) == 0) {
		errno = saved;
		return;
	}
	if (watch != NULL) {
		static const char text[] = "daxfs: memory of the pool is gone, and this device can't map other pages there\n";
		ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
		(void)ignored;
	}
	/* The old handler gets the signal when the instruction is tried again; one that was sent is sent again. */
	installed = 0;
	sigaction(SIGBUS, &before, NULL);
	if (info->si_code <= 0)
		raise(number);
	errno = saved;
	(void)context;
}

/* Have SIGBUS go through the handler above; 0 or -1. A handler that was installed over it is called by it from now on. */
static int install(void) {
	struct sigaction now, wanted = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
	if (sigaction(SIGBUS, NULL, &now) != 0)
		return -1;
	if (installed && (now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_sigbus)
		return 0;
	before = now;
	sigemptyset(&wanted.sa_mask);
	if (sigaction(SIGBUS, &wanted, NULL) != 0)
		return -1;
	installed = 1;
	return 0;
}

/* Watch a mapping of `length` bytes, which mmap(2) can replace in units of `unit`; NULL: there is no room.
 * A mapping that was watched at the same addresses has ended: its watch ends too. */
EXPORTED struct watch *guard_watch(uint64_t begin, uint64_t length, uint64_t unit) {
	if (install() != 0)
		return NULL;
	for (struct watch *watch = watches; watch < watches + WATCHES; watch++)
		if (watch->begin < begin + length && begin < watch->end)
			watch->begin = watch->end = 0;
	for (struct watch *watch = watches; watch < watches + WATCHES; watch++)
		if (watch->end == 0) {
			memset(watch, 0, sizeof *watch);
			watch->unit = unit;
			watch->number = ++last_number;
			watch->begin = begin;
			watch->end = begin + length;
			return watch;
		}
	return NULL;
}

EXPORTED void guard_unwatch(struct watch *watch, uint64_t number) {
	if (watch->number == number)
		watch->begin = watch->end = 0;
}

/* Map the file again where pages were replaced, from the lowest to the highest; 0 or an errno. */
EXPORTED int guard_restore(struct watch *watch, int descriptor, int protection, int flags) {
	uint64_t length = watch->high - watch->low;
	if (mmap((void *)watch->low, length, protection, flags | MAP_FIXED, descriptor, (off_t)(watch->low - watch->begin)) ==
	    MAP_FAILED)
		return errno;
	watch->faults = watch->low = watch->high = 0;
	return 0;
}
