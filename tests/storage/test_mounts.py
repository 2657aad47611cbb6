"""What kind of file system a path lies on, from the kernel's own lines."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from behemoth.storage import mounts
from behemoth.storage.local import LocalStore
from behemoth.storage.mounts import Mount, is_on_network, mount_of
from behemoth.storage.open import is_served

CONTAINER = b"""\
640 520 0:97 / / rw,relatime master:210 - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/u,workdir=/w
641 640 0:101 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
650 640 0:88 /exports/team /data rw,relatime shared:5 master:9 propagate_from:2 - nfs4 filer:/exports/team rw,vers=4.2
651 650 8:17 / /data/scratch rw,noatime - xfs /dev/sdb1 rw
652 651 0:90 / /data/scratch/both rw - lustre 10.0.0.1@tcp:/scratch rw,flock
653 640 8:1 /home/me /home/me rw,relatime - ext4 /dev/sda1 rw
654 653 0:88 /exports/team/me /home/me/a\\040b\\134c\\012d rw - nfs4 filer:/exports/team rw
655 640 0:99 / /wide rw shared:7 - autofs systemd-1 rw,fd=46
656 655 0:102 / /wide rw - ceph 10.0.0.2:/ rw
657 640 0:88 / /data-2 rw - tmpfs none rw
658 640 0:103 / /caf\xe9 rw - beegfs beegfs_nodev rw
659 640 0:104 / /hidden/far rw - lustre 10.0.0.1@tcp:/far rw
660 640 8:18 / /hidden rw - ext4 /dev/sdc1 rw
661 660 0:105 / /hidden/near rw - nfs4 filer:/near rw
662 660 8:18 /kept /hidden rw - xfs /dev/sdd1 rw
663 661 0:106 / /hidden/near/deep rw - tmpfs none rw
664 640 0:107 / /#\011 rw - smb3 //filer/share rw
665 640 0:108 / / rw - tmpfs none rw
"""
"""An overlay as root, bind mounts of directories, mounts within mounts, one above another, some that a later one hides,
one over the root, which nobody meets who starts there, and names that need care."""


@pytest.mark.parametrize(
    ("path", "point", "fs_type"),
    [
        ("/", "/", "overlay"),
        ("/root/runs/x", "/", "overlay"),
        ("/data", "/data", "nfs4"),
        ("/data/run/checkpoints", "/data", "nfs4"),
        ("/data/scratchy", "/data", "nfs4"),
        ("/data/scratch/run", "/data/scratch", "xfs"),
        ("/data/scratch/both/run", "/data/scratch/both", "lustre"),
        ("/data-2/run", "/data-2", "tmpfs"),
        ("/home/me/run", "/home/me", "ext4"),
        ("/home/me/a b\\c\nd/run", "/home/me/a b\\c\nd", "nfs4"),
        ("/home/me/a\\040b\\134c\\012d/run", "/home/me", "ext4"),
        ("/wide/run", "/wide", "ceph"),
        (os.fsdecode(b"/caf\xe9/run"), os.fsdecode(b"/caf\xe9"), "beegfs"),
        ("/hidden/far/run", "/hidden", "xfs"),
        ("/hidden/near/run", "/hidden", "xfs"),
        ("/hidden/near/deep/run", "/hidden", "xfs"),
        ("/#\t/run", "/#\t", "smb3"),
    ],
)
def test_a_path_lies_on_the_last_mount_that_is_met_on_the_way_to_it(path: str, point: str, fs_type: str) -> None:
    mount = mount_of(path, CONTAINER)
    assert mount is not None
    assert (mount.point, mount.fs_type) == (point, fs_type)


def test_below_the_first_root_of_a_machine_without_disks_its_mounts_are_met() -> None:
    """Nodes that run from the file system they were booted with: that root is on itself."""
    diskless = b"""\
1 1 0:2 / / rw - rootfs rootfs rw
22 1 0:40 / /scratch rw,relatime shared:1 - nfs4 filer:/scratch rw
"""
    found = [mount_of(path, diskless) for path in ("/tmp", "/scratch/run")]
    assert [mount and mount.fs_type for mount in found] == ["rootfs", "nfs4"]


@pytest.mark.parametrize(
    "lines", [b"", b"\n", b"rubbish\n", b"1 2 0:1 / /\n", b"1 2 0:1 / / rw - ext4\n", b"\xff - \xff"]
)
def test_lines_that_are_none_of_the_kernels_tell_nothing(lines: bytes) -> None:
    assert mount_of("/data", lines) is None


def test_a_mount_that_was_moved_while_the_lines_were_read_and_is_told_twice_ends_the_walk() -> None:
    lines = b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /a rw - xfs b rw\n3 2 8:3 / /a/b rw - nfs c rw\n"
    found = mount_of("/a/b/c", lines + b"2 3 8:2 / /a/b/c rw - xfs b rw\n")
    assert found is not None
    assert found.point == "/a/b/c"


NETWORK = "nfs nfs4 lustre gpfs ceph beegfs wekafs glusterfs cifs smb3 9p virtiofs fuse.juicefs fuse.s3fs fuse.gcsfuse"
NETWORK += " panfs fuse.mountpoint-s3 fuse.goofys fuse.sshfs fuse.glusterfs fuse.ceph-fuse fuse.wekafs fuse.lustre"
NETWORK += " fuse.panfs fuse.nfs fuse.cvmfs2 fuse.hf3fs"
LOCAL = "ext4 xfs btrfs tmpfs overlay zfs fuseblk fuse.fuse-overlayfs fuse.lxcfs fuse.ext4 fuse"


@pytest.mark.parametrize(
    ("fs_type", "source", "is_network"),
    [
        *((name, "any", True) for name in NETWORK.split()),
        *((name, "any", False) for name in LOCAL.split()),
        ("fuse", "mountpoint-s3", True),
        ("fuse", "JuiceFS:team", True),
        ("fuse", "cvmfs2", True),
        ("fuse.fuse-overlayfs", "sshfs", False),
    ],
)
def test_a_mount_is_of_the_network_by_its_type_or_by_the_name_of_its_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fs_type: str, source: str, is_network: bool
) -> None:
    told(monkeypatch, tmp_path, f"2 1 0:2 / {tmp_path} rw - {fs_type} {source} rw")
    assert LocalStore(tmp_path / "run").is_on_network() is is_network
    assert is_served(f"file://{tmp_path}/run") is is_network


def test_links_are_followed_and_what_is_not_there_yet_lies_where_it_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("common", "own"):
        (tmp_path / name).mkdir()
    (tmp_path / "own" / "link").symlink_to("../common/runs")
    (tmp_path / "common" / "back").symlink_to(tmp_path / "own")
    told(monkeypatch, tmp_path, f"2 1 0:2 / {tmp_path}/common rw - nfs4 filer:/runs rw")
    monkeypatch.chdir(tmp_path / "common")
    found = {name: is_on_network(name) for name in ("../own/link", "../own", "back", ".", "not/yet", "../own/not/yet")}
    assert found == {
        "../own/link": True,
        "../own": False,
        "back": False,
        ".": True,
        "not/yet": True,
        "../own/not/yet": False,
    }


def test_where_the_kernel_does_not_tell_nothing_is_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "MOUNTINFO", str(tmp_path / "missing"))
    assert not is_on_network("/")
    assert not is_served(str(tmp_path))
    assert is_served("s3://bucket/run")


def test_an_overlay_is_one_machines_own_though_its_layers_lie_on_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "layers").mkdir()
    layers = f"lowerdir={tmp_path}/layers/low,upperdir={tmp_path}/layers/up,workdir={tmp_path}/layers/work"
    lines = f"2 1 0:2 / {tmp_path}/layers rw - virtiofs host rw\n3 1 0:3 / {tmp_path}/own rw - overlay any rw,{layers}"
    told(monkeypatch, tmp_path, lines)
    assert is_on_network(str(tmp_path / "layers"))
    assert not is_on_network(str(tmp_path / "own"))


def test_the_mounts_of_this_machine_are_found_as_its_kernel_finds_them() -> None:
    places = ["/", "/proc", "/sys", "/dev", "/dev/shm", os.getcwd()]
    assert_found_as_told(asked(places, "sh"), places)


def test_mounts_of_all_kinds_are_found_as_the_kernel_finds_them(tmp_path: Path) -> None:
    """In a namespace of mounts of its own, where this machine gives one."""
    share = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]
    if shutil.which("unshare") is None or subprocess.run([*share, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives no namespace of mounts")
    names = ["plain", "plain/deep", "plain/deeper", "cover", "cover/deep", "both", "a b#\\c"]
    folder = os.path.realpath(tmp_path)
    places = ["/", *(f"{folder}/{name}" for name in names)]
    lines = asked(places, *share, "sh", before=f"cd {shlex.quote(folder)}\n{MOUNTING}")
    root, plain, *found = [mount.point.removeprefix(f"{folder}/") for mount in assert_found_as_told(lines, places)]
    assert root == "/"
    assert found == ["plain/deep", plain, "cover", "cover", "both", "a b#\\c"]


MOUNTING = r"""
mkdir -p plain/deep plain/deeper cover other/deep both 'a b#\c'
mount -t tmpfs one plain/deep
mount --bind plain/deep cover
mkdir cover/deep
mount -t tmpfs hidden cover/deep
mount --bind other cover
mount -t tmpfs below both
mount -t tmpfs above both
mount -t tmpfs care 'a b#\c'
mount -t tmpfs cover /
"""


def asked(places: Sequence[str], *shell: str, before: str = "") -> bytes:
    """What a shell's kernel tells: for each folder the number of its mount, as it has opened it, then of all mounts."""
    opened = "".join(f"exec 3<{shlex.quote(place)}; grep mnt_id /proc/self/fdinfo/3\n" for place in places)
    script = f"set -e\n{before}\n{opened}cat /proc/self/mountinfo"
    return subprocess.run([*shell, "-c", script], check=True, capture_output=True, timeout=60).stdout


def assert_found_as_told(lines: bytes, places: Sequence[str]) -> list[Mount]:
    numbers = [int(line.split()[1]) for line in lines.splitlines()[: len(places)]]
    found = [mount_of(place, lines) for place in places]
    mounts = [mount for mount in found if mount is not None]
    assert [mount.number for mount in mounts] == numbers
    return mounts


def told(monkeypatch: pytest.MonkeyPatch, folder: Path, line: str) -> None:
    """The kernel tells of a local root, and of one mount."""
    file = folder / "mountinfo"
    file.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n{line}\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", str(file))
