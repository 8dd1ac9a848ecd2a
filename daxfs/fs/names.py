"""Names: looking up, making, linking, removing and renaming.

Each function is one operation on the volume, done in one handle, so that it happens whole or not at all. A search that
takes several steps comes before that handle (`Searches`). Callers check rights (the kernel does it for a mount); the
rules of the format and of POSIX for names are here.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4 import acl
from daxfs.ext4.inode import (
    EXT4_APPEND_FL,
    EXT4_FL_INHERITED,
    EXT4_IMMUTABLE_FL,
    EXT4_OTHER_FLMASK,
    EXT4_PROJINHERIT_FL,
    EXT4_REG_FLMASK,
    file_type_of_mode,
)
from daxfs.ext4.limits import EXT4_LINK_MAX, EXT4_NAME_LEN, FAST_SYMLINK_MAX, symlink_max
from daxfs.fs import clock, removal
from daxfs.fs.attributes import attributes_of, read_attributes
from daxfs.fs.searches import Searches, refuse_loop, refuse_names_in, searching
from daxfs.fs.steps import Steps
from daxfs.fs.tiers import placement
from daxfs.fs.types import Attributes, Caller, DirEntry, DirListing, RenameFlags
from daxfs.fs.volume import Volume
from daxfs.journal.handle import Handle
from daxfs.structures import directories, inode_allocation, inode_bitmaps, inodes, mapping, xattrs
from daxfs.structures.directories import Place
from daxfs.structures.inodes import Inode

NOREPLACE, EXCHANGE, LEAVE_WHITEOUT = int(RenameFlags.NOREPLACE), int(RenameFlags.EXCHANGE), int(RenameFlags.WHITEOUT)
"""Plain integers: ``&`` of an IntFlag takes a microsecond."""
ALL_RENAME_FLAGS = NOREPLACE | EXCHANGE | LEAVE_WHITEOUT

CREDITS_NAME = 16
"""Blocks that adding or removing a name may change: leaf, its split, two index levels, inodes, bitmap, descriptor."""
CREDITS_INODE = 12
"""A new inode, its first block and its attribute block."""
CREDITS_CREATE: int = CREDITS_NAME + CREDITS_INODE
_SLASH = 0x2F
WHITEOUT = stat.S_IFCHR
"""The mode of a whiteout, a device 0/0 without any permission (WHITEOUT_MODE in include/linux/fs.h)."""


def check_name(name: bytes) -> None:
    """Refuse what can't be a directory entry's name. FUSE passes names of 256 bytes, so the length is checked here."""
    if len(name) > EXT4_NAME_LEN:
        raise FsError(errno.ENAMETOOLONG)
    if not name or _SLASH in name or 0 in name:  # numbers: a search for bytes begins with an exception (in CPython)
        raise FsError(errno.EINVAL, "a name must not be empty and must not contain a slash or a zero byte")


def lookup(volume: Volume, parent: int, name: bytes) -> Attributes:
    """Return the attributes of the inode that ``name`` refers to (ENOENT, ENOTDIR, ENAMETOOLONG)."""
    found = find(volume, parent, name)
    if found is None:
        raise FsError(errno.ENOENT)
    return found


def find(volume: Volume, parent: int, name: bytes) -> Attributes | None:
    """Return what `lookup` does; None: there is no such name."""
    if len(name) > EXT4_NAME_LEN:
        raise FsError(errno.ENAMETOOLONG)
    view = volume.view
    ino = directories.ino_of(view, directories.read_inode(view, parent), name)
    if not ino:
        return None
    if not inodes.nameable(view, ino):
        raise Corrupt(CorruptKind.DIRECTORY_ENTRY_OF_A_RESERVED_INODE, f"inode {ino} in {parent}")
    found = read_attributes(volume, ino)
    if not found.nlink and not volume.read_only:
        # It is free, or will be: what is stored there would be lost (``ext4_lookup`` refuses it too).
        raise Corrupt(CorruptKind.DIRECTORY_ENTRY, f"inode {ino} in {parent} has no links")
    return found


def by_number(volume: Volume, ino: int) -> Attributes:
    """Return the attributes of a file by its number, as a file handle has it (ESTALE: it is gone).

    The inode bitmap is read first: an entry of the inode table that was never used may hold anything, which is no
    damage.
    """
    if not (inodes.nameable(volume.view, ino) and inode_bitmaps.may_be_in_use(volume.view, ino)):
        raise FsError(errno.ESTALE)
    found = read_attributes(volume, ino)
    if not found.nlink:
        raise FsError(errno.ESTALE)
    return found


def readdir(volume: Volume, ino: int, cookie: int) -> Iterator[DirEntry]:
    """Return the names strictly after ``cookie`` (0: from the start); valid until the next change of the volume."""
    return directories.entries(volume.view, directories.read_inode(volume.view, ino), cookie)


def listing(volume: Volume, ino: int, cookie: int, most: int | None = None) -> Steps[DirListing]:
    """Return the first names strictly after ``cookie``: ``most``, or some hundred; none only if there are none.

    Other steps than the last one found only blocks of the directory from which all names were removed.
    """
    following: int | None = cookie
    while following is not None:
        found, following = directories.portion(volume.view, directories.read_inode(volume.view, ino), following)
        if len(found):
            return found if most is None else found.part(0, most)
        if following is not None:
            yield
    return DirListing([], [], [], [])


def readlink(volume: Volume, ino: int) -> bytes:
    """Return the target of a symbolic link (EINVAL for any other inode)."""
    inode = inodes.read(volume.view, ino)
    if not stat.S_ISLNK(inode.mode):
        raise FsError(errno.EINVAL)
    node = volume.nodes.of(inode)
    try:
        if node.atime_due:
            node.accessed()
    finally:
        volume.nodes.drop_idle(node)
    size = inode.size
    if inode.is_fast_symlink:
        return bytes(inode.block_area[: min(size, FAST_SYMLINK_MAX)])
    run = mapping.lookup(volume.view, inode, 0)
    if not run.pblk:
        raise Corrupt(CorruptKind.SYMBOLIC_LINK_WITHOUT_ITS_BLOCK, f"inode {ino}")
    # A damaged size may claim more than the target, which ends with a zero byte or with the block (ext4_get_link).
    return bytes(volume.view.block(run.pblk)[: min(size, volume.block_size - 1)]).partition(b"\0")[0]


def new_inode(
    volume: Volume, tx: Handle, parent: Inode, mode: int, caller: Caller, now: int
) -> tuple[Inode, acl.Inherited | None]:
    """Allocate an inode below ``parent`` with owner, group, mode and default ACL as POSIX and ext4 give them.

    Files and directories belong to the memory or storage that ``parent`` names (`placement`).

    With the mount option ``grpid`` a directory hands its group down, but no set-group-ID bit (__ext4_new_inode in
    fs/ext4/ialloc.c).
    """
    inherited = None
    if not stat.S_ISLNK(mode):
        default = xattrs.get_acl(tx, parent, default=True)
        if default is not None:
            inherited = acl.inherit(default, mode)
            mode = inherited.mode
        else:
            mode &= ~(caller.umask & 0o777)
    gid = caller.gid
    if volume.defaults.group_of_directory:
        gid = parent.gid
    elif parent.mode & stat.S_ISGID:
        gid = parent.gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
    inode = inode_allocation.allocate(tx, parent, mode)
    flags = parent.flags
    inode.flags = inherited_flags(flags, mode)
    if flags & EXT4_PROJINHERIT_FL:
        inode.i_projid = parent.i_projid
    inode.uid = caller.uid
    inode.gid = gid
    inode.set_times(now)
    if xattrs.present(parent) and (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        placement.inherit(tx, parent, inode)
    return inode, inherited


def inherited_flags(flags: int, mode: int) -> int:
    """Return the flags that a new inode takes from its directory (__ext4_new_inode in fs/ext4/ialloc.c)."""
    return suited_flags(flags & EXT4_FL_INHERITED, mode)


def suited_flags(flags: int, mode: int) -> int:
    """Return those of the flags that suit the type of inode (ext4_mask_flags in fs/ext4/ext4.h)."""
    if stat.S_ISDIR(mode):
        return flags
    return flags & (EXT4_REG_FLMASK if stat.S_ISREG(mode) else EXT4_OTHER_FLMASK)


def make(
    volume: Volume,
    parent: int,
    name: bytes,
    mode: int,
    caller: Caller,
    *,
    rdev: int = 0,
    target: bytes | None = None,
) -> Inode:
    """Make a file, directory, symbolic link (to ``target``), device node, FIFO or socket: ``mode`` says which.

    The inode that is returned is valid until the next operation.
    """
    check_name(name)
    now = clock.now()
    with volume.handle(CREDITS_CREATE, caller) as tx:
        directory = edit_parent(volume, tx, parent)
        place = directories.find(tx, directory, name)
        if place.ino:
            raise FsError(errno.EEXIST)
        refuse_addition(directory)
        inode, inherited = new_inode(volume, tx, directory, mode, caller, now)
        if stat.S_ISDIR(mode):
            mapping.new_inode_map(tx, inode)
            directories.create(tx, inode, parent)
            add_link_for_subdirectory(volume, directory)
        elif target is not None:
            write_target(volume, tx, inode, target)
        elif stat.S_ISREG(mode):
            mapping.new_inode_map(tx, inode)
        else:
            inode.rdev = rdev
        if inherited is not None:
            xattrs.set_inherited(tx, inode, inherited)
        inode.links_count = 2 if stat.S_ISDIR(mode) else 1
        directories.insert(tx, place, inode.number, file_type_of_mode(mode))
        directory.set_changed(now)
        return inode


def make_nameless(volume: Volume, parent: int, mode: int, caller: Caller, *, linkable: bool) -> Attributes:
    """Make a regular file that no directory names, as if in ``parent`` (ext4_tmpfile in fs/ext4/namei.c).

    It is removed with its last close, or by a power cut, unless `link` gave it a name; ``linkable`` says whether that
    is allowed. The caller opens it at once.
    """
    with volume.handle(CREDITS_INODE, caller) as tx:
        directory = inodes.read(tx, parent)
        if not stat.S_ISDIR(directory.mode):
            raise FsError(errno.ENOTDIR)
        if directory.flags & EXT4_IMMUTABLE_FL or directory.links_count == 0:
            raise FsError(errno.EPERM)
        inode, inherited = new_inode(volume, tx, directory, stat.S_IFREG | (mode & 0o7777), caller, clock.now())
        mapping.new_inode_map(tx, inode)
        if inherited is not None:
            xattrs.set_inherited(tx, inode, inherited)
        volume.lives.made_nameless(tx, inode.number, linkable=linkable)
    return read_attributes(volume, inode.number)


def edit_parent(volume: Volume, tx: Handle, ino: int) -> Inode:
    """Return the directory that a name is added to or removed from, ready to be changed."""
    directory = inodes.edit(tx, ino)
    if not stat.S_ISDIR(directory.mode):
        raise FsError(errno.ENOTDIR)
    volume.note_sync(directory)
    return directory


def refuse_addition(directory: Inode) -> None:
    """Refuse a new name in a directory that was removed or is immutable (may_create in fs/namei.c)."""
    if directory.links_count == 0:
        raise FsError(errno.ENOENT)
    if directory.flags & EXT4_IMMUTABLE_FL:
        raise FsError(errno.EPERM)


def write_target(volume: Volume, tx: Handle, inode: Inode, target: bytes) -> None:
    """Store a symbolic link's target: in the inode when it is short, else in one block."""
    if not target:
        raise FsError(errno.ENOENT)
    if len(target) > symlink_max(volume.block_size):
        raise FsError(errno.ENAMETOOLONG)
    inode.size = len(target)
    if len(target) <= FAST_SYMLINK_MAX:
        inode.block_area[: len(target)] = target
        return
    mapping.new_inode_map(tx, inode)
    run = mapping.allocate(tx, inode, 0, 1)
    block = tx.create(run.pblk)
    block[: len(target)] = target


def add_link_for_subdirectory(volume: Volume, directory: Inode) -> None:
    """Count a new ".." that points at ``directory``; with dir_nlink a count of 1 means "too many to count"."""
    links = directory.links_count
    if links == 1 and volume.geometry.has_dir_nlink:
        return
    if links >= EXT4_LINK_MAX:
        if not volume.geometry.has_dir_nlink:
            raise FsError(errno.EMLINK)
        directory.links_count = 1
        return
    directory.links_count = links + 1


def drop_link_of_subdirectory(directory: Inode) -> None:
    """Count one ".." less that points at ``directory``; a count of 1 ("too many") stays."""
    if directory.links_count > 2:
        directory.links_count = directory.links_count - 1


def refuse_other_project(directory: Inode, inode: Inode) -> None:
    """Refuse an inode with another project number in a directory that hands its own down (EXDEV)."""
    if directory.flags & EXT4_PROJINHERIT_FL and directory.i_projid != inode.i_projid:
        raise FsError(errno.EXDEV)


def link(volume: Volume, ino: int, parent: int, name: bytes, caller: Caller) -> Attributes:
    """Add a name for an inode that is not a directory (EPERM, EMLINK, EEXIST).

    An inode without a name gets none (ENOENT), unless it was made linkable (`make_nameless`).
    """
    check_name(name)
    now = clock.now()
    with volume.handle(CREDITS_NAME, caller) as tx:
        directory = edit_parent(volume, tx, parent)
        place = directories.find(tx, directory, name)
        if place.ino:
            raise FsError(errno.EEXIST)
        refuse_addition(directory)
        inode = inodes.edit(tx, ino)
        if stat.S_ISDIR(inode.mode) or inode.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL):
            raise FsError(errno.EPERM)
        nameless = inode.links_count == 0
        if nameless and ino not in volume.lives.linkable:
            raise FsError(errno.ENOENT)
        if inode.links_count >= EXT4_LINK_MAX:
            raise FsError(errno.EMLINK)
        refuse_other_project(directory, inode)
        directories.insert(tx, place, ino, file_type_of_mode(inode.mode))
        inode.links_count = inode.links_count + 1
        inode.ctime_ns = now
        directory.set_changed(now)
        volume.nodes.stamped(tx, ino, ctime=True)
        if nameless:
            volume.lives.named(tx, ino)
        return attributes_of(inode)


def unlink(volume: Volume, parent: int, name: bytes) -> None:
    """Remove a name; the inode is freed with its last name, or later when it is no longer busy."""
    check_name(name)
    now = clock.now()
    with volume.handle(CREDITS_NAME) as tx:
        directory = edit_parent(volume, tx, parent)
        entry = present(directories.find(tx, directory, name))
        victim = inodes.edit(tx, entry.ino)
        refuse_protected(directory, victim)
        if stat.S_ISDIR(victim.mode):
            raise FsError(errno.EISDIR)
        directories.remove(tx, entry)
        directory.set_changed(now)
        freed = removal.free_with_name(volume, tx, victim)
        if not freed:
            drop_name(volume, tx, victim, now)
    if not freed:
        removal.collect(volume, entry.ino)


def present(entry: Place) -> Place:
    """Return the place of an existing name (ENOENT)."""
    if not entry.ino:
        raise FsError(errno.ENOENT)
    return entry


def refuse_protected(directory: Inode, victim: Inode) -> None:
    """Refuse to remove names of immutable and append-only inodes, or in such directories (may_delete in fs/namei.c)."""
    if directory.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL) or victim.flags & (EXT4_IMMUTABLE_FL | EXT4_APPEND_FL):
        raise FsError(errno.EPERM)


def drop_name(volume: Volume, tx: Handle, victim: Inode, now: int) -> None:
    """Count one name of ``victim`` less; a directory, which is empty, is removed whole."""
    victim.ctime_ns = now
    volume.nodes.stamped(tx, victim.number, ctime=True)
    if stat.S_ISDIR(victim.mode):
        victim.links_count = 0
        victim.size = 0
    elif victim.links_count > 0:
        victim.links_count = victim.links_count - 1
    if victim.links_count == 0:
        volume.lives.unnamed(tx, victim.number)


def rmdir(volume: Volume, parent: int, name: bytes) -> Steps[None]:
    """Remove an empty directory (ENOTEMPTY, ENOTDIR)."""
    if name == b".":
        raise FsError(errno.EINVAL)
    if name == b"..":
        raise FsError(errno.ENOTEMPTY)
    check_name(name)
    removed = yield from searching(volume, lambda searches: rmdir_at_once(volume, parent, name, searches))
    removal.collect(volume, removed)


def rmdir_at_once(volume: Volume, parent: int, name: bytes, searches: Searches) -> int:
    """Remove an empty directory in one handle; return its inode number."""
    now = clock.now()
    with volume.handle(CREDITS_NAME) as tx:
        directory = edit_parent(volume, tx, parent)
        entry = present(directories.find(tx, directory, name))
        victim = inodes.edit(tx, entry.ino)
        refuse_protected(directory, victim)
        if not stat.S_ISDIR(victim.mode):
            raise FsError(errno.ENOTDIR)
        refuse_names_in(volume, victim, searches)
        directories.remove(tx, entry)
        drop_link_of_subdirectory(directory)
        directory.set_changed(now)
        drop_name(volume, tx, victim, now)
    return entry.ino


def rename(
    volume: Volume, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, caller: Caller
) -> Steps[None]:
    """Rename as renameat2(2), with `RenameFlags` (EINVAL for unknown flags and for EXCHANGE with others).

    A whiteout that is left belongs to the caller.
    """
    check_name(name)
    check_name(new_name)
    flags = int(flags)
    if flags & ~ALL_RENAME_FLAGS or (flags & EXCHANGE and flags != EXCHANGE):
        raise FsError(errno.EINVAL)
    if name in (b".", b"..") or new_name in (b".", b".."):
        raise FsError(errno.EBUSY)
    replaced = yield from searching(
        volume, lambda searches: rename_at_once(volume, parent, name, new_parent, new_name, flags, caller, searches)
    )
    if replaced:
        removal.begin(volume, replaced)


def rename_at_once(
    volume: Volume,
    parent: int,
    name: bytes,
    new_parent: int,
    new_name: bytes,
    flags: int,
    caller: Caller,
    searches: Searches,
) -> int:
    """Rename in one handle. Return the number of the inode that lost the new name, or 0.

    Args:
        volume: as for `rename`, like all but ``searches``.
        parent: the old name's directory.
        name: the old name.
        new_parent: the new name's directory.
        new_name: the new name.
        flags: `RenameFlags`.
        caller: owns a whiteout.
        searches: what earlier searches have found.

    Raises:
        NeedsSearch: for a destination that is very deep, or a directory to be replaced that is very large.
    """
    replaced = 0
    with volume.handle(2 * CREDITS_NAME + CREDITS_INODE, caller) as tx:
        source = edit_parent(volume, tx, parent)
        destination = source if new_parent == parent else edit_parent(volume, tx, new_parent)
        old = present(directories.find(tx, source, name))
        new = directories.find(tx, destination, new_name)
        if flags & NOREPLACE and new.ino:
            raise FsError(errno.EEXIST)
        if flags & EXCHANGE:
            exchange(volume, tx, old, present(new), searches)
        elif new.ino != old.ino:
            whiteout_of = caller if flags & LEAVE_WHITEOUT else None
            replaced = move(volume, tx, old, new, whiteout_of, searches)
    return replaced


def move(volume: Volume, tx: Handle, old: Place, new: Place, whiteout_of: Caller | None, searches: Searches) -> int:
    """Move the entry ``old`` to its new place; the inode there loses the name. Return that inode's number, or 0.

    With ``whiteout_of`` a whiteout of this owner takes the old place (ext4_rename in fs/ext4/namei.c).
    """
    now = clock.now()
    source, destination = old.directory, new.directory
    crosses = source.number != destination.number
    inode = inodes.edit(tx, old.ino)
    is_directory = stat.S_ISDIR(inode.mode)
    refuse_protected(source, inode)
    if is_directory:
        volume.snapshots.refuse_change(old.ino)
    refuse_other_project(destination, inode)
    if not new.ino:
        refuse_addition(destination)
    if is_directory and crosses:
        refuse_loop(volume, inode, destination.number, searches)
    if new.ino:
        victim = inodes.edit(tx, new.ino)
        replace_checks(volume, is_directory, destination, victim, searches)
        directories.replace(tx, new, old.ino, old.file_type)
        if is_directory:
            drop_link_of_subdirectory(destination)
        drop_name(volume, tx, victim, now)
    else:
        directories.insert(tx, new, old.ino, file_type_of_mode(inode.mode))
    if whiteout_of is None:
        directories.remove(tx, old)
    else:
        whiteout, inherited = new_inode(volume, tx, source, WHITEOUT, whiteout_of, now)
        if inherited is not None:
            xattrs.set_inherited(tx, whiteout, inherited)
        whiteout.links_count = 1
        directories.replace(tx, old, whiteout.number, file_type_of_mode(WHITEOUT))
    if is_directory and crosses:
        drop_link_of_subdirectory(source)
        add_link_for_subdirectory(volume, destination)
        directories.set_parent(tx, inode, destination.number)
    inode.ctime_ns = now
    volume.nodes.stamped(tx, old.ino, ctime=True)
    source.set_changed(now)
    destination.set_changed(now)
    return new.ino


def replace_checks(volume: Volume, is_directory: bool, destination: Inode, victim: Inode, searches: Searches) -> None:
    """Refuse to rename over ``victim`` (EISDIR, ENOTDIR, ENOTEMPTY, EPERM)."""
    refuse_protected(destination, victim)
    if stat.S_ISDIR(victim.mode):
        if not is_directory:
            raise FsError(errno.EISDIR)
        refuse_names_in(volume, victim, searches)
    elif is_directory:
        raise FsError(errno.ENOTDIR)


def exchange(volume: Volume, tx: Handle, old: Place, new: Place, searches: Searches) -> None:
    """Exchange two names (RENAME_EXCHANGE): each then refers to the other's inode."""
    now = clock.now()
    source, destination = old.directory, new.directory
    first, second = inodes.edit(tx, old.ino), inodes.edit(tx, new.ino)
    refuse_protected(source, first)
    refuse_protected(destination, second)
    refuse_other_project(destination, first)
    refuse_other_project(source, second)
    for inode, joined in ((first, destination), (second, source)):
        if stat.S_ISDIR(inode.mode):
            volume.snapshots.refuse_change(inode.number)
            refuse_loop(volume, inode, joined.number, searches)
    directories.replace(tx, old, new.ino, file_type_of_mode(second.mode))
    directories.replace(tx, new, old.ino, file_type_of_mode(first.mode))
    if source.number != destination.number:
        for moved, left, joined in ((first, source, destination), (second, destination, source)):
            if stat.S_ISDIR(moved.mode):
                drop_link_of_subdirectory(left)
                add_link_for_subdirectory(volume, joined)
                directories.set_parent(tx, moved, joined.number)
    for inode in (first, second, source, destination):
        inode.ctime_ns = now
    source.mtime_ns = destination.mtime_ns = now
    volume.nodes.stamped(tx, old.ino, ctime=True)
    volume.nodes.stamped(tx, new.ino, ctime=True)
