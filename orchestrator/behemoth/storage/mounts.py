"""Whether files lie on servers, which all nodes ask, or on the machine itself: the kind of file system of a path.

From what the kernel tells of the process's mounts, /proc/self/mountinfo (proc(5)); where it tells nothing (another
system, a sandbox), nothing is known. What follows from it is not decided here. The neighbour is `local`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from contextlib import suppress
from typing import NamedTuple

MOUNTINFO = "/proc/self/mountinfo"
_NETWORK_TYPES = """
9p afs beegfs ceph cifs coda cvfs dvs fhgfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs panfs pvfs2 smb3
smbfs virtiofs wekafs
"""
NETWORK_TYPES = frozenset(_NETWORK_TYPES.split())
"""As the kernel names them; `fuse.NAME` is apart. A disk that several machines share (gfs2, ocfs2) counts: it serves
all of them together, as a server does. An overlay does not, whatever its layers lie on: no two machines may write
through one upper layer, so what it holds is one machine's own."""
_NETWORK_CLIENTS = """
alluxio alluxio-fuse blobfuse blobfuse2 ceph-fuse chfs cosfs cubefs curvefs cvmfs cvmfs2 daos davfs dfuse dingofs
fuse_dfs gcsfuse geesefs goofys hdfs hf3fs juicefs lizardfs mfs moosefs mountpoint-s3 objectivefs obsfs ossfs ossfs2
quobyte rclone s3backer s3fs s3ql saunafs seaweedfs sshfs tosfs unifyfs weed xtreemfs
"""
NETWORK_CLIENTS = NETWORK_TYPES | frozenset(_NETWORK_CLIENTS.split())
"""Programs behind FUSE mounts that get files from servers; those of servers that a kernel knows too have its names for
them. All others are local (overlays, encryption, NTFS), or unknown."""

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")
_FIELDS_BEFORE_OPTIONAL = 6
_NUMBER, _PARENT, _POINT = 0, 1, 4
_NOTHING = -1


class Mount(NamedTuple):
    """One of the process's mounts. `number`: the kernel's; `parent`: of the mount on which its point lies."""

    number: int
    parent: int
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
    """The mount on which an absolute path without links lies, found as the kernel walks along the path: from the root
    to the first mount on it that is met, and from there on. So mounts that lie below one that came later, which hides
    them, are never met. `mountinfo`: the kernel's lines; what is none of them is passed over."""
    mounts = [mount for mount in map(_mount, mountinfo.split(b"\n")) if mount is not None]
    numbers = {mount.number for mount in mounts}
    met_on: defaultdict[int, list[Mount]] = defaultdict(list)
    for mount in mounts:
        if not _is_above(mount.point, path):
            continue
        if mount.parent not in numbers or mount.parent == mount.number:  # not seen, or the kernel's first root
            met_on[_NOTHING].append(mount)
        elif mount.point != "/":  # a cover of the root is not met by who starts at the root
            met_on[mount.parent].append(mount)
    found: Mount | None = None
    met = met_on.pop(_NOTHING, [])
    while met:
        found = min(met, key=lambda mount: len(mount.point))
        met = met_on.pop(found.number, [])
    return found


def _mount(line: bytes) -> Mount | None:
    """`36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/sda1 rw`: before the hyphen any number of fields."""
    fields = line.split(b" ")
    try:
        end = fields.index(b"-", _FIELDS_BEFORE_OPTIONAL)
        fs_type, source = fields[end + 1 : end + 3]
        number, parent = int(fields[_NUMBER]), int(fields[_PARENT])
    except ValueError:
        return None
    return Mount(number, parent, _text(fields[_POINT]), _text(fs_type), _text(source))


def _text(field: bytes) -> str:
    r"""As Python has paths; the kernel writes blanks, line ends and backslashes as \040, \012 and \134."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def _is_above(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")
