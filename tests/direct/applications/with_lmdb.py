"""An LMDB program: transactions move money between accounts; the total never changes, in any snapshot.

``with_lmdb.py work DIRECTORY WRITEMAP ROUNDS`` (0: for good) says "begun", and "round" after each twenty;
``with_lmdb.py check DIRECTORY WRITEMAP`` says how many rounds there were in all.
"""

from __future__ import annotations

import random
import sys

import lmdb

ACCOUNTS, START, TELL = 200, 1000, 20
MAP_SIZE = 8 << 20


def amount(transaction: lmdb.Transaction, key: bytes) -> int:
    """Return what an account holds."""
    return int(transaction.get(key))


def fill(base: lmdb.Environment) -> None:
    """Make the accounts, unless another process has made them."""
    with base.begin(write=True) as transaction:
        if transaction.get(b"rounds") is None:
            transaction.put(b"rounds", b"0")
            for number in range(ACCOUNTS):
                transaction.put(b"account%d" % number, b"%d" % START)


def check(base: lmdb.Environment) -> int:
    """Check the total of one snapshot, and return the number of rounds."""
    with base.begin() as transaction:
        total = sum(int(value) for key, value in transaction.cursor() if key.startswith(b"account"))
        assert total == ACCOUNTS * START, total
        return amount(transaction, b"rounds")


def work(base: lmdb.Environment, rounds: int) -> None:
    """Transfer money; every fifth time also read everything. Values have several sizes, so that pages move."""
    chance = random.Random()
    done = 0
    while not rounds or done < rounds:
        done += 1
        with base.begin(write=True) as transaction:
            source, target = (b"account%d" % number for number in chance.sample(range(ACCOUNTS), 2))
            moved = chance.randrange(50)
            transaction.put(source, b"%d" % (amount(transaction, source) - moved))
            transaction.put(b"note%d" % chance.randrange(50), bytes(chance.randrange(6000)))
            transaction.put(target, b"%d" % (amount(transaction, target) + moved))
            transaction.put(b"rounds", b"%d" % (amount(transaction, b"rounds") + 1))
        if done % 5 == 0:
            check(base)
        if done % TELL == 0:
            print("round", flush=True)


def main() -> None:
    """Run the command of the command line."""
    role, directory, writemap, *rest = sys.argv[1:]
    with lmdb.open(directory, map_size=MAP_SIZE, writemap=writemap == "True") as base:
        if role == "work":
            fill(base)
            print("begun", flush=True)
            work(base, int(rest[0]))
        else:
            print(check(base))


if __name__ == "__main__":
    main()
