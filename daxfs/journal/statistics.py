"""Layer 4: what a journal has counted since it was opened (`daxfs.journal.journal.Journal.stats`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statistics:
    """The counters of a journal since it was opened.

    Attributes:
        commits: transactions made durable.
        blocks: metadata blocks in those transactions.
        blocks_home: metadata blocks copied home.
        blocks_logged: blocks stored in the log, descriptors, revoke blocks and commit records included.
        blocks_revoked: revoke records written.
        tail_moves: how often the log was full, so that its tail moved.
        rollbacks: handles that were undone.
        sizes: commits by their number of metadata blocks: ``sizes[n]`` counts the commits whose number has ``n`` bits
            (``2**(n - 1)`` to ``2**n - 1``).
        largest: metadata blocks in the largest commit.
        running_blocks: blocks changed by the running transaction.
        pending_free_blocks: blocks that become free with the next commit.
        log_blocks: blocks of the log that transactions may fill; 0 without a log.
        log_blocks_used: blocks of the log that hold transactions.
    """

    commits: int
    blocks: int
    blocks_home: int
    blocks_logged: int
    blocks_revoked: int
    tail_moves: int
    rollbacks: int
    sizes: tuple[int, ...]
    largest: int
    running_blocks: int
    pending_free_blocks: int
    log_blocks: int
    log_blocks_used: int
