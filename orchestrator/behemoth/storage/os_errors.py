"""Maps the operating system's error numbers to our errors: fix, look elsewhere, try again.

Must not decide anything beyond the class of the error. The neighbour is `local`, whose every system call runs in here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from behemoth.base.errors import BehemothError, Conflict, Denied, Invalid, NotFound, Unavailable


@contextmanager
def named_errors(doing: str) -> Iterator[None]:
    """Turn an OSError inside into one of ours; `doing` begins the message, such as `write steps/a/c/0`."""
    try:
        yield
    except OSError as error:
        raise translated(error, doing) from error


def translated(error: OSError, doing: str) -> BehemothError:
    """The error of ours for one of the system's. What is unknown counts as Unavailable: retried, but not for ever."""
    message = f"{doing}: {os.strerror(error.errno or errno.EIO).lower()}"
    match error.errno:
        case errno.ENOENT:
            return NotFound(message)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return Denied(message, hint="check owner and mode of the directory and that it is not mounted read-only")
        case errno.ELOOP:
            return Denied(
                f"{doing}: expected no link on the way, got a symbolic link", hint="use a directory without links in it"
            )
        case errno.ENOSPC | errno.EDQUOT:
            hint = "free space, raise the quota, or keep fewer checkpoints; committed ones are intact"
            return Unavailable(message, code="no-space", hint=hint)
        case errno.ENOTDIR | errno.EISDIR | errno.EEXIST:
            return Conflict(f"{message}: expected a free name, got one for both an object and a folder")
        case errno.ENXIO:
            # No damage: a device may come back, and what is damaged may be deleted.
            return Unavailable(
                f"{doing}: expected a regular file, got a socket, or a device that is not there", code="io-error"
            )
        case errno.EFBIG:
            return Invalid(
                f"{message}: expected a place for files of this size, got another",
                hint="raise the limit of the size of files (ulimit -f), or use a file system that takes larger ones",
            )
        case errno.ENAMETOOLONG | errno.EINVAL:
            return Invalid(
                f"{message}: expected a file system that can hold this, got another", hint="use another file system"
            )
        case errno.EMFILE | errno.ENFILE:
            return Unavailable(message, code="too-many-files", hint="raise the limit of open files (ulimit -n)")
        case errno.EIO | errno.EUCLEAN | errno.EBADMSG:  # the second and third: checksums of the file system's own
            hint = "the disk or the mount fails; look into the kernel log (dmesg)"
            return Unavailable(message, code="io-error", hint=hint)
        case _:
            return Unavailable(message)
