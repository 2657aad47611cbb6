"""The form of keys, checked by every adapter alike, so that all stores accept the same keys.

Must not touch a disk. The neighbour is `local`, which turns segments into paths.
"""

from __future__ import annotations

from behemoth.base.errors import Invalid

TEMP_PREFIX = ".behemoth-tmp-"
"""Segments with this beginning belong to adapters: unfinished files that are no objects and are never listed."""

MAX_KEY_BYTES = 1024
"""S3's limit for a key (Amazon S3 user guide, "Naming Amazon S3 objects")."""
MAX_SEGMENT_BYTES = 255
"""NAME_MAX of the file systems in use."""


def segments_of(key: str) -> tuple[str, ...]:
    """The key's segments. Raises Invalid for anything that is not a plain relative path below the store's root."""
    segments = tuple(key.split("/"))
    for segment in segments:
        _check_segment(key, segment)
    if len(key.encode()) > MAX_KEY_BYTES:
        raise Invalid(f"store key: expected at most {MAX_KEY_BYTES} bytes of UTF-8, got {len(key.encode())} bytes")
    return segments


def segments_of_prefix(prefix: str) -> tuple[str, ...]:
    """Like `segments_of`, for the argument of a listing: empty means the whole store, one ending `/` is allowed."""
    return segments_of(prefix.removesuffix("/")) if prefix else ()


def _check_segment(key: str, segment: str) -> None:
    if segment in ("", ".", ".."):
        raise Invalid(f"store key {key!r}: expected segments other than '', '.' and '..', got {segment!r}")
    if "\0" in segment:
        raise Invalid(f"store key {key!r}: expected no NUL character, got one")
    if segment.startswith(TEMP_PREFIX):
        raise Invalid(
            f"store key {key!r}: expected no segment that begins with {TEMP_PREFIX!r}, which marks what is unfinished, "
            f"got {segment!r}"
        )
    try:
        num_bytes = len(segment.encode())
    except UnicodeEncodeError as error:
        raise Invalid(f"store key {key!r}: expected text that UTF-8 can encode, got {segment!r}") from error
    if num_bytes > MAX_SEGMENT_BYTES:
        raise Invalid(f"store key: expected segments of at most {MAX_SEGMENT_BYTES} bytes, got {num_bytes} bytes")
