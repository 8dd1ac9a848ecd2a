/* A libpmemobj program: transactions move money between accounts, whose total never changes, and replace an object.
 *
 * accounts work FILE ROUNDS   so many transactions (0: for good); says "begun", and "round" after each fifty
 * accounts die FILE           ends itself by SIGKILL in the middle of a transaction
 * accounts check FILE         opens the pool, which recovers it, and checks it; says how many transactions it has seen
 *
 * The pool is one of `pmempool create obj --layout=accounts`.
 */
#include <inttypes.h>
#include <libpmemobj.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ACCOUNTS = 512, START = 1000, TELL = 50 };

struct book {
    uint64_t rounds;
    uint64_t money[ACCOUNTS];
    PMEMoid note; /* of NOTE bytes, all of them the last round's */
};

enum { NOTE = 3000 };

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, pmemobj_errormsg());
    exit(1);
}

static void fill(PMEMobjpool *pool, struct book *book)
{
    TX_BEGIN(pool)
    {
        pmemobj_tx_add_range_direct(book, sizeof(*book));
        for (int i = 0; i < ACCOUNTS; i++)
            book->money[i] = START;
        book->note = pmemobj_tx_zalloc(NOTE, 1);
    }
    TX_ONABORT
    {
        fail("fill");
    }
    TX_END
}

static void transfer(PMEMobjpool *pool, struct book *book, int deadly)
{
    uint64_t from = rand() % ACCOUNTS, to = rand() % ACCOUNTS, amount = rand() % 7;

    TX_BEGIN(pool)
    {
        pmemobj_tx_add_range_direct(&book->money[from], sizeof(book->money[from]));
        book->money[from] -= amount;
        pmemobj_tx_add_range_direct(&book->rounds, sizeof(book->rounds));
        book->rounds++;
        pmemobj_tx_add_range_direct(&book->note, sizeof(book->note));
        pmemobj_tx_free(book->note);
        book->note = pmemobj_tx_alloc(NOTE, 1);
        memset(pmemobj_direct(book->note), (int)(book->rounds & 0xff), NOTE);
        if (deadly) {
            book->money[from] -= 1; /* surely not what it was, also when the amount is 0 */
            pmemobj_persist(pool, book, sizeof(*book));
            raise(SIGKILL);
        }
        pmemobj_tx_add_range_direct(&book->money[to], sizeof(book->money[to]));
        book->money[to] += amount;
    }
    TX_ONABORT
    {
        fail("transfer");
    }
    TX_END
}

static void check(const struct book *book)
{
    const unsigned char *note = pmemobj_direct(book->note);
    uint64_t total = 0;

    for (int i = 0; i < ACCOUNTS; i++)
        total += book->money[i]; /* wraps around as the accounts do */
    if (total != (uint64_t)ACCOUNTS * START) {
        printf("the total is %" PRIu64 "\n", total);
        exit(1);
    }
    for (int i = 0; i < NOTE; i++) {
        if (note[i] != (book->rounds & 0xff)) {
            printf("byte %d of the note is %u after %" PRIu64 " rounds\n", i, note[i], book->rounds);
            exit(1);
        }
    }
    printf("%" PRIu64 "\n", book->rounds);
}

int main(int count, char **words)
{
    if (count < 3)
        return 2;
    PMEMobjpool *pool = pmemobj_open(words[2], "accounts");
    if (!pool)
        fail("open");
    struct book *book = pmemobj_direct(pmemobj_root(pool, sizeof(struct book)));
    if (!book)
        fail("root");
    if (OID_IS_NULL(book->note))
        fill(pool, book);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(words[1], "work")) {
        long rounds = count > 3 ? atol(words[3]) : 0;
        puts("begun");
        for (long round = 1; !rounds || round <= rounds; round++) {
            transfer(pool, book, 0);
            if (round % TELL == 0)
                puts("round");
        }
    } else if (!strcmp(words[1], "die")) {
        transfer(pool, book, 1);
    } else {
        check(book);
    }
    pmemobj_close(pool);
    return 0;
}
