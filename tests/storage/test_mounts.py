"""What kind of file system a path lies on, from the kernel's own lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from behemoth.storage import mounts
from behemoth.storage.local import LocalStore
from behemoth.storage.mounts import is_on_network, mount_of
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
"""
"""An overlay as root, bind mounts of directories, mounts within mounts, one above another, and names that need care."""


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
    ],
)
def test_a_path_lies_on_the_deepest_mount_above_it(path: str, point: str, fs_type: str) -> None:
    mount = mount_of(path, CONTAINER)
    assert mount is not None
    assert (mount.point, mount.fs_type) == (point, fs_type)


@pytest.mark.parametrize(
    "lines", [b"", b"\n", b"rubbish\n", b"1 2 0:1 / /\n", b"1 2 0:1 / / rw - ext4\n", b"\xff - \xff"]
)
def test_lines_that_are_none_of_the_kernels_tell_nothing(lines: bytes) -> None:
    assert mount_of("/data", lines) is None


NETWORK = "nfs nfs4 lustre gpfs ceph beegfs wekafs glusterfs cifs smb3 9p virtiofs fuse.juicefs fuse.s3fs fuse.gcsfuse"
NETWORK += " fuse.mountpoint-s3 fuse.sshfs fuse.glusterfs fuse.ceph-fuse"
LOCAL = "ext4 xfs btrfs tmpfs overlay zfs fuseblk fuse.fuse-overlayfs fuse.lxcfs fuse.nfs fuse"


@pytest.mark.parametrize(
    ("fs_type", "source", "is_network"),
    [
        *((name, "any", True) for name in NETWORK.split()),
        *((name, "any", False) for name in LOCAL.split()),
        ("fuse", "mountpoint-s3", True),
        ("fuse", "JuiceFS:team", True),
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


def test_what_this_kernel_tells_of_this_machine_can_be_read() -> None:
    with open(mounts.MOUNTINFO, "rb") as file:
        lines = file.read()
    root, proc = mount_of("/", lines), mount_of("/proc/self", lines)
    assert root is not None
    assert proc is not None
    assert (root.point, proc.fs_type) == ("/", "proc")


def told(monkeypatch: pytest.MonkeyPatch, folder: Path, line: str) -> None:
    """The kernel tells of a local root, and of one mount."""
    file = folder / "mountinfo"
    file.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n{line}\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", str(file))
