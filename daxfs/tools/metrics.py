"""Statistics of a mount in Prometheus's text format, for a scraper that runs ``daxfs stats --prometheus``.

A new number is a row of `METRICS`. Numbers that the daemon does not report are left out: a read-only mount has no
journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from daxfs.fuse.kernel.abi import Opcode
from daxfs.fuse.kernel.statistics import TRANSFERRED
from daxfs.tools.snapshot import failures

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

    from daxfs.tools.snapshot import Snapshot

BILLION = 10**9
DURATIONS = [(n, (1 << n) / BILLION) for n in range(9, 34)]
"""The classes of durations that become buckets, with their limits in seconds (0.5 us to 8.6 s); they never change."""
SIZES = [(n, (1 << n) - 1) for n in range(1, 17)]
"""The classes of transaction sizes that become buckets, with their limits in blocks."""


class Metric(NamedTuple):
    """One number: its place in the daemon's answer, and its kind, name and text in Prometheus's format."""

    section: str
    key: str
    counter: bool
    name: str
    text: str


METRICS = (
    Metric("session", "cpu", True, "daxfs_cpu_seconds", "Processor time of the daemon since counting began."),
    Metric("session", "spun", True, "daxfs_spinning_seconds", "Time that the session has waited without sleeping."),
    Metric("files", "open_files", False, "daxfs_open_files", "Open files."),
    Metric("files", "refused_opens", True, "daxfs_refused_opens", "Opens of users who had too many files open."),
    Metric("files", "remembered", False, "daxfs_remembered_inodes", "Inodes that the kernel remembers."),
    Metric("files", "lazy_times", False, "daxfs_lazy_times", "Inodes whose times wait for the next commit."),
    Metric("files", "leases", False, "daxfs_lease_holders", "Holders of leases, which load and store directly."),
    Metric("files", "deferred", False, "daxfs_deferred_free_bytes", "Freed bytes that wait for holders of leases."),
    Metric("files", "nameless", False, "daxfs_nameless_inodes", "Inodes in use that have no name."),
    Metric("files", "long_requests", False, "daxfs_long_requests", "Requests of several steps that are in progress."),
    Metric("files", "queued_requests", False, "daxfs_queued_requests", "Requests that wait for their turn."),
    Metric("files", "postponed_requests", False, "daxfs_postponed_requests", "Requests that wait for room."),
    Metric("files", "refused_requests", True, "daxfs_refused_requests", "Requests of users with too many that wait."),
    Metric("files", "memory_errors", True, "daxfs_memory_errors", "Loads and stores that met missing memory."),
    Metric("files", "bad_bytes", False, "daxfs_bad_memory_bytes", "Bytes of the pool that are known to be bad."),
    Metric("files", "snapshots", False, "daxfs_snapshots", "Snapshots that are valid."),
    Metric("files", "snapshot_copied", True, "daxfs_snapshot_copied_bytes", "Bytes copied for snapshots."),
    Metric("files", "snapshot_mapped", True, "daxfs_snapshot_mapped_bytes", "Those copied when one was made."),
    Metric("tiers", "memory", False, "daxfs_memory_bytes", "Memory of a pool with storage."),
    Metric("tiers", "memory_free", False, "daxfs_memory_free_bytes", "That is free."),
    Metric("tiers", "storage", False, "daxfs_storage_bytes", "Storage of a pool."),
    Metric("tiers", "storage_free", False, "daxfs_storage_free_bytes", "That is free."),
    Metric("tiers", "reads", True, "daxfs_tier_reads", "Reads of files, of up to 256 KiB each."),
    Metric("tiers", "hits", True, "daxfs_tier_hits", "Those that did not wait for storage."),
    Metric("tiers", "read", True, "daxfs_storage_read_bytes", "Bytes read from storage for readers."),
    Metric("tiers", "promoted", True, "daxfs_storage_promoted_bytes", "Bytes moved to memory."),
    Metric("tiers", "demoted", True, "daxfs_storage_demoted_bytes", "Bytes moved to storage."),
    Metric("tiers", "failed", False, "daxfs_storage_failed_members", "Members of the storage that have failed."),
    Metric("journal", "blocks_home", True, "daxfs_journal_home_blocks", "Blocks of metadata copied home."),
    Metric("journal", "blocks_logged", True, "daxfs_journal_logged_blocks", "Blocks stored in the log."),
    Metric("journal", "blocks_revoked", True, "daxfs_journal_revoked_blocks", "Blocks revoked."),
    Metric("journal", "tail_moves", True, "daxfs_journal_log_laps", "Times that the log was full and was emptied."),
    Metric("journal", "rollbacks", True, "daxfs_journal_rollbacks", "Operations that were undone."),
    Metric("journal", "running_blocks", False, "daxfs_journal_running_blocks", "Blocks changed since the last commit."),
    Metric("journal", "pending_free_blocks", False, "daxfs_journal_pending_free_blocks", "Freed by the next commit."),
    Metric("journal", "log_blocks", False, "daxfs_journal_log_blocks", "Room of the log."),
    Metric("journal", "log_blocks_used", False, "daxfs_journal_log_used_blocks", "Blocks that hold transactions."),
)


class Mount(Collector):
    """A snapshot as metrics; all have the label ``mountpoint``."""

    def __init__(self, mountpoint: str, found: Snapshot) -> None:
        self._mountpoint = mountpoint
        self._found = found

    def collect(self) -> Iterator[Family]:
        """Yield the metrics of requests, of the table `METRICS`, and of transaction sizes."""
        found, place = self._found, self._mountpoint
        labels = ("mountpoint", "opcode")
        durations = HistogramMetricFamily(
            "daxfs_request_duration_seconds", "Time in the handler of a request.", labels=labels
        )
        longest = GaugeMetricFamily(
            "daxfs_request_duration_max_seconds", "The longest since counting began.", labels=labels
        )
        errors = CounterMetricFamily("daxfs_request_errors", "Requests answered with an error.", labels=labels)
        transferred = CounterMetricFamily("daxfs_request_bytes", "Bytes of files read, written, copied.", labels=labels)
        for name, operation in found.operations.items():
            durations.add_metric(
                (place, name),
                buckets(operation.histogram, DURATIONS),
                operation.nanoseconds / BILLION,
            )
            longest.add_metric((place, name), operation.longest / BILLION)
            errors.add_metric((place, name), operation.errors)
            if Opcode[name] in TRANSFERRED:
                transferred.add_metric((place, name), operation.bytes)
        yield from (durations, longest, errors, transferred)
        sections: dict[str, dict[str, Any]] = {
            "session": found.session,
            "files": found.files,
            "tiers": {**found.tiers, "failed": len(failures(found.tiers))} if found.tiers else {},
            "journal": found.journal or {},
        }
        for metric in METRICS:
            value = sections[metric.section].get(metric.key)
            if value is not None:
                family = (CounterMetricFamily if metric.counter else GaugeMetricFamily)(
                    metric.name, metric.text, labels=labels[:1]
                )
                family.add_metric((place,), value)
                yield family
        if found.journal is not None:
            sizes = HistogramMetricFamily(
                "daxfs_journal_commit_blocks", "Blocks of metadata in a transaction.", labels=labels[:1]
            )
            sizes.add_metric((place,), buckets(found.journal["sizes"], SIZES), found.journal["blocks"])
            yield sizes


def buckets(histogram: Sequence[int], classes: Sequence[tuple[int, float]]) -> list[tuple[str, float]]:
    """Return cumulative counts by limit."""
    found = [(repr(float(limit)), float(sum(histogram[: n + 1]))) for n, limit in classes]
    return [*found, ("+Inf", float(sum(histogram)))]


def exposition(mountpoint: str, found: Snapshot) -> str:
    """Return the text for the scraper."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Mount(mountpoint, found))
    return generate_latest(registry).decode()
