"""Whether files lie on servers, which all nodes ask, or on the machine itself: the kind of file system of a path.

From what the kernel tells of the process's mounts, /proc/self/mountinfo (proc(5)); where it tells nothing (another
system, a sandbox), nothing is known. What follows from it is not decided here. The neighbour is `local`.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import NamedTuple

MOUNTINFO = "/proc/self/mountinfo"
_NETWORK_TYPES = """
9p afs beegfs ceph cifs coda cvfs dvs fhgfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs panfs pvfs2 smb3
smbfs virtiofs wekafs
"""
NETWORK_TYPES = frozenset(_NETWORK_TYPES.split())
"""As the kernel names them; `fuse.NAME` is apart. A disk that several machines share (gfs2, ocfs2) counts: it serves
all of them together, as a server does."""
_NETWORK_CLIENTS = """
alluxio alluxio-fuse beegfs blobfuse blobfuse2 ceph ceph-fuse cosfs cubefs curvefs daos davfs dfuse dingofs gcsfuse
geesefs glusterfs goofys hdfs juicefs lizardfs mfs moosefs mountpoint-s3 objectivefs ossfs quobyte rclone s3backer s3fs
s3ql seaweedfs sshfs weed
"""
NETWORK_CLIENTS = frozenset(_NETWORK_CLIENTS.split())
"""Programs behind FUSE mounts that get files from servers. All others are local (overlays, encryption, NTFS), or
unknown."""

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")
_FIELDS_BEFORE_OPTIONAL = 6
_POINT = 4


class Mount(NamedTuple):
    """One of the process's mounts."""

    point: str
    fs_type: str
    source: str

    @property
    def is_network(self) -> bool:
        kind, _, client = self.fs_type.partition(".")
        if kind == "fuse":  # some clients name themselves in the source alone
            return (client or self.source.partition(":")[0]).lower() in NETWORK_CLIENTS
        return kind in NETWORK_TYPES


def is_on_network(path: str) -> bool:
    """Whether a file there is served by other machines; False where nobody can tell. Blocks while the servers of
    folders above it are away."""
    with suppress(OSError):
        os.stat(f"{path}/.")  # an automounter mounts what is asked for, and shows its own type before
    real = os.path.realpath(path)
    try:
        with open(MOUNTINFO, "rb") as file:
            mount = mount_of(real, file.read())
    except OSError:
        return False
    return mount is not None and mount.is_network


def mount_of(path: str, mountinfo: bytes) -> Mount | None:
    """The mount on which an absolute path without links lies: the one that is deepest above it, and of several at one
    place the last, which covers the others. `mountinfo`: the kernel's lines; what is none of them is passed over."""
    found: Mount | None = None
    for line in mountinfo.split(b"\n"):
        mount = _mount(line)
        if mount is None or not _is_above(mount.point, path):
            continue
        if found is None or len(mount.point) >= len(found.point):
            found = mount
    return found


def _mount(line: bytes) -> Mount | None:
    """`36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/sda1 rw`: before the hyphen any number of fields."""
    fields = line.split(b" ")
    try:
        end = fields.index(b"-", _FIELDS_BEFORE_OPTIONAL)
        fs_type, source = fields[end + 1 : end + 3]
    except ValueError:
        return None
    return Mount(_text(fields[_POINT]), _text(fs_type), _text(source))


def _text(field: bytes) -> str:
    r"""As Python has paths; the kernel writes blanks, line ends and backslashes as \040, \012 and \134."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def _is_above(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")
