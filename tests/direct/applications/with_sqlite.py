"""An SQLite program whose transactions move money between accounts, with the base mapped into memory.

``with_sqlite.py work BASE JOURNAL ROUNDS`` (0: for good) says "begun", and "round" after each twenty;
``with_sqlite.py check BASE JOURNAL`` checks the whole base and says how many rounds there were in all.
"""

from __future__ import annotations

import random
import sqlite3
import sys

ACCOUNTS, START, TELL = 200, 1000, 20
MAPPED = 64 << 20


def connect(path: str, journal: str) -> sqlite3.Connection:
    """Open the database: mapped, and with this kind of journal."""
    base = sqlite3.connect(path, timeout=30, isolation_level=None)
    assert base.execute(f"PRAGMA mmap_size={MAPPED}").fetchone() == (MAPPED,)
    assert base.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
    base.execute("PRAGMA wal_autocheckpoint=50")  # pages: so that checkpoints happen meanwhile
    return base


def fill(base: sqlite3.Connection) -> None:
    """Make the accounts, unless another process has made them."""
    base.execute("BEGIN IMMEDIATE")
    if not base.execute("SELECT count(*) FROM sqlite_master WHERE name = 'account'").fetchone()[0]:
        base.execute("CREATE TABLE account (number INTEGER PRIMARY KEY, money INTEGER)")
        base.execute("CREATE TABLE note (text BLOB)")
        base.executemany("INSERT INTO account VALUES (?, ?)", ((number, START) for number in range(ACCOUNTS)))
    base.execute("COMMIT")


def check(base: sqlite3.Connection) -> int:
    """Check the total of one snapshot, and return the number of rounds, each of which left one note."""
    base.execute("BEGIN")
    total = base.execute("SELECT sum(money) FROM account").fetchone()[0]
    assert total == ACCOUNTS * START, total
    rounds: int = base.execute("SELECT count(*) FROM note").fetchone()[0]
    base.execute("COMMIT")
    return rounds


def work(base: sqlite3.Connection, rounds: int) -> None:
    """Transfer money; every tenth time also read everything."""
    chance = random.Random()
    done = 0
    while not rounds or done < rounds:
        done += 1
        source, target = chance.sample(range(ACCOUNTS), 2)
        moved = chance.randrange(50)
        base.execute("BEGIN IMMEDIATE")
        base.execute("UPDATE account SET money = money - ? WHERE number = ?", (moved, source))
        base.execute("INSERT INTO note VALUES (?)", (bytes(chance.randrange(3000)),))
        base.execute("UPDATE account SET money = money + ? WHERE number = ?", (moved, target))
        base.execute("COMMIT")
        if done % 10 == 0:
            check(base)
        if done % TELL == 0:
            print("round", flush=True)


def main() -> None:
    """Run the command of the command line."""
    role, path, journal, *rest = sys.argv[1:]
    base = connect(path, journal)
    if role == "work":
        fill(base)
        print("begun", flush=True)
        work(base, int(rest[0]))
    else:
        assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        print(check(base))
    base.close()


if __name__ == "__main__":
    main()
