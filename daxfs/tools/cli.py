"""The command line: parse arguments, call another module for the work, print an error as one line, set the exit code.

Each command imports what it needs when it runs, so that the command line starts fast. An error that the user can cause
(`UserError`, `FsError`) is one line on standard error; a traceback is a bug.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from daxfs import compiled
from daxfs.errors import FsError, UserError
from daxfs.pmem.descriptors import fill_standard
from daxfs.tools.arguments import MountpointArgument, PoolArgument
from daxfs.tools.printing import printable
from daxfs.tools.snapshotcommands import snapshots_app

MOUNT_USAGE = 1  # mount(8)
CHECK_USAGE = 16  # fsck(8)
CHECK_FAILED = 8  # fsck(8): operational error
EXEC_FAILED = 125  # env(1)
INTERRUPTED = 130
COPY_FAILED = 1  # dd(1)

USAGE_CODES = {"mount": MOUNT_USAGE, "umount": MOUNT_USAGE, "check": CHECK_USAGE, "exec": EXEC_FAILED}
FAILURE_CODES = {
    "mount": 32,
    "umount": 32,
    "check": CHECK_FAILED,
    "exec": EXEC_FAILED,
    "export": COPY_FAILED,
    "import": COPY_FAILED,
    "snapshot": COPY_FAILED,
    "resize": COPY_FAILED,
}

PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": True}

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def show_version(wanted: bool) -> None:
    """Print the name and version and whether the core is compiled, and exit."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"daxfs {version('daxfs')}, {compiled.state()}")
        raise typer.Exit


@app.callback()
def common_options(
    _version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """A real ext4 file system in mapped persistent memory, served from user space."""


@app.command(
    "mkfs",
    context_settings={**PASS_THROUGH, "help_option_names": ["--help"]},
    options_metavar="POOL [--size S] [--sparse] [--tier FILE[:SIZE]]... [--keep-mode] [--trust-owner] [MKE2FS OPTIONS]",
)
def mkfs_command(context: typer.Context) -> None:
    """Make an ext4 file system in POOL with mke2fs; --size creates the file. Other options go to mke2fs.

    A file is fully allocated, unless --sparse is given. It gets mode 0600, because a user who may read it can read
    every file in it, unless --keep-mode is given. A pool that others can change is refused without --trust-owner.

    --tier puts storage after the memory, once for each file or block device; a file that does not exist is made with
    SIZE (docs/TIERS.md).
    """
    mkfs_arguments(context.args)


class MountCommand(TyperCommand):
    """``daxfs mount``, whose help ends with the table of mount options."""

    def get_help(self, ctx: Any) -> str:
        """Return the usual help, followed by all mount options."""
        from daxfs.tools import optionlist

        return f"{super().get_help(ctx)}\n\nMount options (-o).\n{optionlist.as_help()}".rstrip()


@app.command("mount", cls=MountCommand)
def mount_command(
    pool: PoolArgument,
    mountpoint: Annotated[str, typer.Argument(metavar="MOUNTPOINT", help="A directory.")] = "",
    given: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            metavar="OPTIONS",
            help="Mount options separated by commas; see below.",
        ),
    ] = None,
    foreground: Annotated[bool, typer.Option("-f", "--foreground", help="Serve in this process.")] = False,
    trust_owner: Annotated[
        bool, typer.Option("--trust-owner", help="Mount a pool that others can change, nosuid and nodev.")
    ] = False,
) -> None:
    """Mount POOL; return when the mount answers. With -o remount,... change the options of MOUNTPOINT (no POOL)."""
    from daxfs.tools import mount

    options = [*(given or ()), *(["trust_owner"] if trust_owner else [])]
    mount.mount(pool, mountpoint, options, foreground=foreground)


@app.command("umount")
def umount_command(
    mountpoint: MountpointArgument,
    lazy: Annotated[bool, typer.Option("-l", "--lazy", help="Detach now, end when no longer in use.")] = False,
) -> None:
    """Unmount MOUNTPOINT; return when the pool is closed."""
    from daxfs.tools import mount

    mount.umount(mountpoint, lazy=lazy)


@app.command("info")
def info_command(
    place: Annotated[str, typer.Argument(metavar="POOL|MOUNTPOINT")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the kind, size and state of a pool, and of its mount."""
    from daxfs.tools import info

    info.show(place, as_json=as_json)


@app.command("check")
def check_command(
    pool: PoolArgument,
    yes: Annotated[bool, typer.Option("-y", help="Repair without asking.")] = False,
    no: Annotated[bool, typer.Option("-n", help="Change nothing.")] = False,
    preen: Annotated[bool, typer.Option("-p", help="Repair only what is safe to repair.")] = False,
    force: Annotated[bool, typer.Option("-f", help="Check even if POOL is marked clean.")] = False,
) -> None:
    """Check POOL with e2fsck and exit with its exit code."""
    from daxfs.tools import check

    chosen = [flag for flag, given in (("-y", yes), ("-n", no), ("-p", preen), ("-f", force)) if given]
    raise typer.Exit(check.check(pool, chosen))


@app.command("export")
def export_command(
    pool: PoolArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A new file, or - for standard output.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    rescue: Annotated[
        bool, typer.Option("--rescue", help="Copy a pool with missing memory, as zeros; the exit code is then 1.")
    ] = False,
) -> None:
    """Copy POOL, which is not in use, into a sparse FILE, byte by byte; e2fsck, debugfs and the kernel can read it."""
    from daxfs.tools import exporting

    exporting.run(pool, file, force=force, rescue=rescue)


@app.command("import")
def import_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, device or pool, or - for standard input.")],
    pool: PoolArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite what POOL holds; copy also what is not a whole ext4.")
    ] = False,
    sparse: Annotated[bool, typer.Option("--sparse", help="Leave holes in POOL if it is a file.")] = False,
    keep_mode: Annotated[bool, typer.Option("--keep-mode", help="A file that exists keeps its mode.")] = False,
    trust_owner: Annotated[bool, typer.Option("--trust-owner", help="Fill a pool that others can change.")] = False,
) -> None:
    """Copy the file system in FILE into POOL, which is not in use. A file is created, allocated, and gets mode 0600.

    A larger POOL keeps a file system of the old size. An interrupted import leaves no file system.
    """
    from daxfs.tools import importing

    options = importing.Options(force=force, sparse=sparse, keep_mode=keep_mode, trust_owner=trust_owner)
    importing.run(file, pool, options)


app.add_typer(snapshots_app, name="snapshot")


@app.command("dump")
def dump_command(
    pool: PoolArgument,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT",
            help="superblock | group N | inode N | extents N | dir N | journal; N may be a /PATH for inodes.",
        ),
    ],
) -> None:
    """Show structures of POOL field by field, by the kernel's names."""
    from daxfs.tools import dump

    dump.show(pool, what)


@app.command("map")
def map_command(
    place: Annotated[
        str, typer.Argument(metavar="FILE|POOL|MOUNTPOINT", help="A file on a mount, POOL:/PATH, or a whole pool.")
    ],
    pool: Annotated[str, typer.Option("--pool", metavar="POOL", help="FILE is a path in this pool.")] = "",
    image: Annotated[
        str, typer.Option("--image", metavar="FILE", help="Draw the whole pool into FILE too, a PNG or SVG.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the extents of FILE in its pool, and how much of it can be mapped with 2 MiB pages; or draw a whole pool.

    The drawing shows what each chunk of 2 MiB holds: free space, data, metadata, the journal, snapshots, bad memory.
    """
    from daxfs.tools import mapview

    if not pool and mapview.is_whole_pool(place):
        from daxfs.tools import pooldrawing

        pooldrawing.show(place, as_json=as_json, image=image)
    elif image:
        raise UserError(f"{place} is a file; only a whole pool is drawn as an image", os.EX_USAGE)
    else:
        mapview.show(place, pool=pool, as_json=as_json)


@app.command("defrag")
def defrag_command(
    place: Annotated[str, typer.Argument(metavar="PATH|MOUNTPOINT", help="A file or directory on a mount.")],
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="All files below a directory.")] = False,
    rate: Annotated[
        str, typer.Option("--rate", metavar="SIZE", help="Move at most so many bytes a second, as 500M.")
    ] = "",
) -> None:
    """Move the blocks of files to where 2 MiB pages map them, while programs use the files.

    What programs map stays where it is, and is named with their process ids. MOUNTPOINT means all files of the mount.
    The exit code is 1 if some files below a directory failed, which are named.
    """
    from daxfs.tools import defrag

    raise typer.Exit(defrag.run(place, recursive=recursive, rate=rate))


@app.command("tier")
def tier_command(
    mountpoint: Annotated[str, typer.Argument(metavar="[MOUNTPOINT]", help="Show its memory and storage.")] = "",
    added: Annotated[
        str,
        typer.Option("--add", metavar="FILE[:SIZE]", help="Let a file or block device follow MOUNTPOINT's members."),
    ] = "",
    removed: Annotated[str, typer.Option("--remove", metavar="FILE", help="Let the last member leave.")] = "",
    demoted: Annotated[str, typer.Option("--demote", metavar="PATH", help="Move a file to storage.")] = "",
    promoted: Annotated[str, typer.Option("--promote", metavar="PATH", help="Move a file to memory.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    force: Annotated[bool, typer.Option("-F", help="--add: overwrite what FILE holds.")] = False,
    sparse: Annotated[bool, typer.Option("--sparse", help="--add: leave holes in FILE.")] = False,
    trust_owner: Annotated[
        bool, typer.Option("--trust-owner", help="--add: accept FILE though others own it.")
    ] = False,
) -> None:
    """Show how a mount uses memory and storage (daxfs mkfs --tier), move a file between them, or change the storage.

    Programs use the file meanwhile. A change of what lies on storage moves the changed blocks to memory by itself.
    --add makes a pool larger, and what was only memory a pool with storage; a file that does not exist is made with
    SIZE. --remove moves what lies on the last member to others or into memory, and makes the pool smaller.
    """
    from daxfs.fuse.kernel.tiering import Action
    from daxfs.tools import tier, tiermembers

    if added or removed:
        if not mountpoint or sum(map(bool, (added, removed, demoted, promoted))) != 1:
            raise UserError("name a mountpoint, and one of --add and --remove", os.EX_USAGE)
        if added:
            tiermembers.add(mountpoint, added, force=force, sparse=sparse, trust_owner=trust_owner)
        else:
            tiermembers.remove(mountpoint, removed)
        return
    if sum(map(bool, (mountpoint, demoted, promoted))) != 1:
        raise UserError("name a mountpoint, or a file with --demote or --promote", os.EX_USAGE)
    if mountpoint:
        tier.show(mountpoint, as_json=as_json)
    else:
        tier.move(demoted or promoted, Action.DEMOTE if demoted else Action.PROMOTE)


@app.command("badblocks")
def badblocks_command(
    place: Annotated[str, typer.Argument(metavar="POOL|MOUNTPOINT")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the bad memory of a pool, with the files that it hits; exit code 1 if there is any.

    POOL: what the kernel lists of the device. MOUNTPOINT: also what its daemon has met.
    """
    from daxfs.tools import badblocks

    raise typer.Exit(badblocks.show(place, as_json=as_json))


@app.command("resize")
def resize_command(
    place: Annotated[str, typer.Argument(metavar="POOL|MOUNTPOINT")],
    size: Annotated[
        str | None, typer.Argument(metavar="[SIZE]", help="As 64G or 1.5T; without it all that the file or device has.")
    ] = None,
    minimum: Annotated[bool, typer.Option("--minimum", help="Print the smallest size, in bytes.")] = False,
) -> None:
    """Make a file system larger or smaller, mounted or not, together with the pool's file.

    Programs go on meanwhile. What can't move out of the part that goes is named, and nothing has changed then.
    """
    from daxfs.tools import resize

    if minimum and size is not None:
        raise UserError("--minimum takes no size", os.EX_USAGE)
    if minimum:
        resize.show_minimum(place)
    else:
        resize.run(place, size)


@app.command("sync")
def sync_command(mountpoint: MountpointArgument) -> None:
    """Make all earlier changes on MOUNTPOINT durable, also where the kernel does not pass sync(1) on to the daemon."""
    from daxfs.tools import sync

    sync.sync(mountpoint)


@app.command("stats")
def stats_command(
    mountpoint: MountpointArgument,
    interval: Annotated[
        float | None, typer.Option("--interval", metavar="SECONDS", help="How long to watch (default 1).")
    ] = None,
    total: Annotated[bool, typer.Option("--total", help="Show all since counting began, at once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="All, in Prometheus's text format.")] = False,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="[ADDRESS:]PORT", help="Serve it to Prometheus; ADDRESS is 127.0.0.1."),
    ] = None,
) -> None:
    """Show requests by kind with sizes and times, the journal and open files. The first call begins the counting."""
    from daxfs.tools import stats

    stats.show(mountpoint, interval=interval, total=total, as_json=as_json, prometheus=prometheus, listen=listen)


@app.command("top")
def top_command(
    mountpoint: MountpointArgument,
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", help="How often to refresh.")] = 1.0,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", help="End after N refreshes (without a terminal: 1).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each refresh.")] = False,
) -> None:
    """Show what MOUNTPOINT is doing now: requests by kind and by process, the longest stall, leases, the journal.

    The longest times are those since counting began, with the process that sent the request.
    """
    from daxfs.tools import top

    top.run(mountpoint, interval, count, as_json=as_json)


@app.command("exec", context_settings={"allow_interspersed_args": False})
def exec_command(
    program: Annotated[list[str], typer.Argument(metavar="PROGRAM [ARGUMENTS]")],
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Print what is run, and at its end how many accesses were direct.")
    ] = False,
) -> None:
    """Run PROGRAM with direct access to files of daxfs, without the daemon; DAXFS_DIRECT=0 switches direct access off.

    Programs that are statically linked or set-user-ID run as usual, through FUSE.
    """
    from daxfs.tools import exec

    exec.run(program, verbose=verbose)


def mkfs_arguments(arguments: list[str]) -> None:
    """Run mkfs with the arguments ``POOL [SIZE] [--size SIZE] [mke2fs options]``, in any order."""
    from daxfs.tools import make

    make.run(arguments)


def prepare() -> None:
    """Open the standard streams of a process that was started without them, before it opens anything else.

    An error is one line, so what modules log is dropped until a session sends it somewhere (`daxfs.fuse.logs`).
    """
    fill_standard()
    logging.getLogger("daxfs").addHandler(logging.NullHandler())
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files may have any bytes


def main() -> None:
    """Run the ``daxfs`` command."""
    prepare()
    arguments = sys.argv[1:] or ["--help"]
    name = next((word for word in arguments if not word.startswith("-")), "")
    ended = _guarded(
        lambda: _run_command(arguments), USAGE_CODES.get(name, os.EX_USAGE), FAILURE_CODES.get(name, os.EX_DATAERR)
    )
    sys.exit(ended if sys.argv[1:] else os.EX_USAGE)


def mkfs_main() -> None:
    """Run the ``mkfs.daxfs`` command."""
    prepare()
    sys.exit(_guarded(lambda: mkfs_arguments(sys.argv[1:]), os.EX_USAGE, os.EX_DATAERR))


def mount_main() -> None:
    """Run the ``mount.fuse.daxfs`` command, which mount(8) calls."""
    prepare()
    from daxfs.tools import mount

    sys.exit(_guarded(lambda: mount.mount_arguments(sys.argv[1:]), MOUNT_USAGE, FAILURE_CODES["mount"]))


def fsck_main() -> None:
    """Run the ``fsck.daxfs`` command, which fsck(8) calls."""
    prepare()
    from daxfs.tools import check

    sys.exit(_guarded(lambda: check.check_arguments(sys.argv[1:]), CHECK_USAGE, CHECK_FAILED))


def _run_command(arguments: list[str]) -> int | None:
    result = typer.main.get_command(app).main(arguments, prog_name="daxfs", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _guarded(command: Callable[[], int | None], usage: int, failure: int) -> int:
    """Run a command; errors become one line on standard error and an exit code."""
    try:
        code = command() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        return _complain(str(error), error.code)
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as ended:
        # The command line parser exits by itself after a broken pipe.
        if isinstance(ended.__context__, BrokenPipeError):
            return _reader_left()
        raise
    except FsError as error:
        return _complain(error.strerror or str(error), failure)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", failure)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        text = getattr(error, "format_message", None)  # a usage error of the command line parser has this method
        if text is None:
            raise
        return _complain(f"{text()} See: daxfs --help", usage)


def _reader_left() -> int:
    """End without an error after the reader has closed the pipe, and discard buffered output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return 0


def _complain(message: str, code: int) -> int:
    print("daxfs:", printable(" ".join(message.split())), file=sys.stderr)
    return code
