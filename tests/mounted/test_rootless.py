"""Mounts by an ordinary user through fusermount3, and by anybody in a user namespace, where mount(2) itself is allowed.

Each runs as programs of their own, in a mount and a process namespace of their own: nothing outlives a test, and a
machine whose /dev/fuse is root's alone lends the test a device node of the test's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_rig import NOBODY, SESSIONS, mountpoint

from support import PATHS, tool

LIMIT = 90
CHECKOUT = Path(__file__).parents[2]

ALONE = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")
AS_ROOT = ("unshare", "--user", "--map-root-user", "--mount")
AS_ROOT_AND_ALONE = (*AS_ROOT, "--pid", "--fork", "--kill-child")

PREPARE = """
set -eu
place=$1; shift
mount -t tmpfs -o mode=755 tmpfs "$place"
cd "$place"
# Python, its packages and the checkout may lie in a home that an ordinary user can't enter.
mkdir python packages checkout work
mount --bind "$BASE" python
mount --bind "$PACKAGES" packages
mount --bind "$CHECKOUT" checkout
chown "$SOMEBODY:$SOMEBODY" work
if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
    mknod -m 666 fuse c 10 229
    mount --bind fuse /dev/fuse
fi
if [ -n "$FUSE_CONF" ]; then
    echo "$FUSE_CONF" >fuse.conf
    mount --bind fuse.conf /etc/fuse.conf
fi
cd work
exec setpriv --reuid "$SOMEBODY" --regid "$SOMEBODY" --clear-groups "$@"
"""
"""By root: a place for an ordinary user, who then runs the rest of the arguments there."""

FUNCTIONS = """
set -eu
daxfs() { timeout 30 "$PYTHON" -B -m daxfs.tools "$@"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
same() { [ "$1" = "$2" ] || fail "$3: $1, expected $2"; }
refuses() { if "$@" 2>said; then fail "went well: $*"; fi; cat said; }
mkdir mnt
daxfs mkfs pool --size 64M
options=$1
"""

LIFE = """
daxfs mount pool mnt -o "$options"
grep " $PWD/mnt fuse.daxfs " /proc/self/mounts
cd mnt
umask 027
mkdir -p d/e
echo data >d/file
ln -s file d/link
ln d/file d/e/hard
mv d/e d/f
same "$(cat d/link)" data "through a link"
same "$(stat -c %a:%u:%g:%h d/file)" "640:$(id -u):$(id -g):2" "attributes"
chmod 4711 d/file
same "$(stat -c %a d/file)" 4711 "chmod"
refuses chown 12345 d/file
setfattr -n user.key -v value d/file
same "$(getfattr --only-values -n user.key d/file)" value "attribute"
setfacl -m u:$(id -u):rwx,g::r d/f
getfacl -cn d/f | grep "^user:$(id -u):rwx"
case $options in
    *session=kernel*)
        setfacl -d -m u::rwx,g::rwx,o::- d/f
        touch d/f/new
        same "$(stat -c %a d/f/new)" 660 "a default ACL in place of the umask"
        ;;
esac
fio --name=job --rw=randwrite --bs=4k --size=2m --direct=1 --ioengine=psync --fallocate=none --verify=crc32c \\
    --verify_state_save=0 | grep -E 'err= 0'
cd ..
refuses daxfs mount pool mnt | grep 'in use'
daxfs umount mnt
refuses grep " $PWD/mnt " /proc/self/mounts
e2fsck -fn pool
daxfs mount pool mnt -o "$options,ro"
same "$(cat mnt/d/f/hard)" data "after the second mount"
refuses touch mnt/new | grep 'Read-only'
daxfs umount mnt
e2fsck -fn pool
echo ALL IS WELL
"""

OTHERS_REFUSED = """
refuses daxfs mount pool mnt -o "$options,allow_other" | grep user_allow_other
e2fsck -fn pool
echo ALL IS WELL
"""

OTHERS_ALLOWED = """
daxfs mount pool mnt -o "$options,allow_other"
grep " $PWD/mnt fuse.daxfs .*allow_other" /proc/self/mounts
daxfs umount mnt
e2fsck -fn pool
echo ALL IS WELL
"""

FIRST_PROCESS = """
timeout 60 unshare --pid --fork --kill-child "$PYTHON" -B -m daxfs.tools mount -f pool mnt -o "$options" &
tries=0
until grep " $PWD/mnt fuse.daxfs " /proc/self/mounts; do
    [ $tries -lt 400 ] || fail "the mount did not come"
    tries=$((tries + 1))
    sleep 0.05
done
echo data >mnt/file
unshare=$(cat /proc/$!/task/$!/children)
first=$(cat /proc/${unshare% }/task/${unshare% }/children)
grep "^NSpid:.*[^0-9]1$" /proc/${first% }/status
kill -TERM ${first% }
wait $!
refuses grep " $PWD/mnt " /proc/self/mounts
e2fsck -fn pool
same "$(dumpe2fs -h pool | grep -c needs_recovery)" 0 "journals to replay"
same "$(debugfs -R 'cat file' pool)" data "what was written"
echo ALL IS WELL
"""
"""The daemon as a container's first process, which an engine ends by SIGTERM."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody reaches."""
    with mountpoint() as place:
        yield place


def run(command: list[str], script: str, options: tuple[str, ...], cwd: Path, **environment: str) -> str:
    """Run a shell script as the arguments of ``command``; returns its output, which must end with success."""
    done = subprocess.run(
        [tool(command[0]), *command[1:], "sh", "-c", FUNCTIONS + script, "sh", ",".join(("rw", *options))],
        cwd=cwd,
        env={"PATH": PATHS, "LC_ALL": "C.UTF-8", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}"
    assert done.stdout.endswith("ALL IS WELL\n"), done.stdout
    return done.stdout


def run_as_oneself(place: Path, script: str, options: tuple[str, ...], *wrap: str) -> str:
    """In ``place``, with this Python."""
    return run([*wrap], script, options, place, PYTHON=sys.executable, PYTHONPATH=str(CHECKOUT))


def run_as_somebody(place: Path, script: str, options: tuple[str, ...], *wrap: str, fuse_conf: str = "") -> str:
    """As an ordinary user: by root as nobody, else as whoever runs the tests."""
    if os.geteuid() != 0:
        return run_as_oneself(place, script, options, *(wrap or ("env",)))
    base = Path(sys.base_prefix)
    return run(
        [*ALONE, "sh", "-c", PREPARE, "sh", str(place), *wrap],
        script,
        options,
        Path("/"),
        BASE=str(base),
        PACKAGES=sysconfig.get_path("purelib"),
        CHECKOUT=str(CHECKOUT),
        SOMEBODY=str(NOBODY),
        FUSE_CONF=fuse_conf,
        PYTHON=f"{place}/python/bin/python{sysconfig.get_python_version()}",
        PYTHONPATH=f"{place}/checkout:{place}/packages",
        LD_LIBRARY_PATH=f"{place}/python/lib",
    )


def mount_options(said: str) -> set[str]:
    """The options that the script saw in the table of mounts."""
    line = next(line for line in said.splitlines() if " fuse.daxfs " in line)
    return set(line.split()[3].split(","))


@pytest.mark.parametrize("session", SESSIONS)
def test_an_ordinary_user_mounts_through_the_helper(session: str, place: Path) -> None:
    said = run_as_somebody(place, LIFE, SESSIONS[session])
    found = mount_options(said)
    user = os.geteuid() or NOBODY
    assert {f"user_id={user}", "nosuid", "nodev", "default_permissions"} <= found
    assert "allow_other" not in found


@pytest.mark.parametrize("session", SESSIONS)
def test_an_ordinary_user_mounts_in_a_user_namespace(session: str, place: Path) -> None:
    said = run_as_somebody(place, LIFE, SESSIONS[session], *AS_ROOT_AND_ALONE)
    assert {"user_id=0", "default_permissions", "allow_other"} <= mount_options(said)


@pytest.mark.parametrize("session", SESSIONS)
def test_whoever_runs_the_tests_mounts_in_a_user_namespace(session: str, place: Path) -> None:
    said = run_as_oneself(place, LIFE, SESSIONS[session], *AS_ROOT_AND_ALONE)
    assert {"user_id=0", "default_permissions", "allow_other"} <= mount_options(said)


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize(
    ("fuse_conf", "script"),
    [("# nothing", OTHERS_REFUSED), ("user_allow_other", OTHERS_ALLOWED)],
    ids=["without", "with"],
)
def test_other_users_need_user_allow_other(session: str, place: Path, fuse_conf: str, script: str) -> None:
    if os.geteuid() != 0:
        configured = "user_allow_other" in Path("/etc/fuse.conf").read_text().splitlines()
        script = OTHERS_ALLOWED if configured else OTHERS_REFUSED
    run_as_somebody(place, script, SESSIONS[session], fuse_conf=fuse_conf)


@pytest.mark.parametrize("session", SESSIONS)
def test_the_first_process_of_a_container_unmounts_when_it_is_stopped(session: str, place: Path) -> None:
    run_as_oneself(place, FIRST_PROCESS, SESSIONS[session], *AS_ROOT)
