"""The commands of ``daxfs snapshot``: their arguments and help.

Each command imports what it needs when it runs, as those of `cli` do.
"""

from __future__ import annotations

from typing import Annotated

import typer

from daxfs.tools.arguments import MountpointArgument, NameArgument, PlaceArgument, PoolArgument

snapshots_app = typer.Typer(help="Snapshots: the whole file system as it was at a moment.", rich_markup_mode=None)


@snapshots_app.command("create")
def snapshot_create_command(
    mountpoint: MountpointArgument,
    name: NameArgument,
    skip_mapped: Annotated[
        bool, typer.Option("--skip-mapped", help="Do not copy what programs may store to; name those files.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Keep the whole file system as it is now, while it goes on.

    Blocks are copied when they are first overwritten; what programs have mapped for storing is copied at once. If the
    pool has no room for a copy, the snapshots are lost, which list shows, and not the write.
    """
    from daxfs.tools import snapshots

    snapshots.create(mountpoint, name, skip_mapped=skip_mapped, as_json=as_json)


@snapshots_app.command("list")
def snapshot_list_command(
    place: PlaceArgument, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List the snapshots of a mount or pool, the oldest first."""
    from daxfs.tools import snapshots

    snapshots.show(place, as_json=as_json)


@snapshots_app.command("delete")
def snapshot_delete_command(mountpoint: MountpointArgument, name: NameArgument) -> None:
    """Delete a snapshot, also one that is lost."""
    from daxfs.tools import snapshots

    snapshots.delete(mountpoint, name)


@snapshots_app.command("export")
def snapshot_export_command(
    place: PlaceArgument,
    name: NameArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The image, a new file.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write a snapshot to FILE as a sparse and clean ext4 image, while a mount is in use."""
    from daxfs.tools import snapshots

    snapshots.export(place, name, file, force=force)


@snapshots_app.command("restore")
def snapshot_restore_command(
    pool: PoolArgument,
    name: NameArgument,
    force: Annotated[bool, typer.Option("--force", help="Delete newer snapshots too.")] = False,
) -> None:
    """Make POOL, which must not be mounted, again what a snapshot shows. What was changed since is lost.

    If it is interrupted, the pool can't be mounted until the same command has finished. The snapshot is deleted then.
    """
    from daxfs.tools import restoring

    restoring.run(pool, name, force=force)


@snapshots_app.command("mount")
def snapshot_mount_command(
    place: PlaceArgument,
    name: NameArgument,
    directory: Annotated[str, typer.Argument(metavar="DIRECTORY", help="Where the snapshot is mounted.")],
    given: Annotated[
        list[str] | None,
        typer.Option("-o", metavar="OPTIONS", help="Mount options separated by commas, as of daxfs mount."),
    ] = None,
    foreground: Annotated[bool, typer.Option("-f", "--foreground", help="Serve in this process.")] = False,
) -> None:
    """Mount a snapshot read-only, beside the mount that goes on; daxfs umount DIRECTORY unmounts it.

    A mount that has such a view can't be unmounted. If the snapshot is lost or deleted, what was not read yet is EIO.
    """
    from daxfs.tools import snapshotmount

    snapshotmount.run(place, name, directory, given or (), foreground=foreground)


@snapshots_app.command("send")
def snapshot_send_command(
    place: PlaceArgument,
    name: NameArgument,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="A new file; standard output without it.")] = "-",
    since: Annotated[str, typer.Option("--since", metavar="OTHER", help="Only what has changed since OTHER.")] = "",
    start: Annotated[
        int, typer.Option("--from", metavar="OFFSET", min=0, help="Go on where receive says that it has stopped.")
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write a snapshot as a stream with checksums, for receive; with --since the changed blocks only."""
    from daxfs.tools import snapshotsend

    snapshotsend.send(place, name, file, since=since, start=start, force=force)


@snapshots_app.command("receive")
def snapshot_receive_command(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A new file, or a pool that is not in use.")],
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="The stream; standard input without it.")] = "-",
    force: Annotated[bool, typer.Option("--force", help="Overwrite what TARGET holds.")] = False,
) -> None:
    """Store a stream of send in TARGET. With --since it must hold that snapshot, unchanged, from an earlier receive.

    A stream that ends early leaves no file system, and a message where to go on.
    """
    from daxfs.tools import snapshotsend

    snapshotsend.receive(target, file, force=force)
