"""What parts of an upload may be, for every adapter alike, so that what one store takes no other refuses.

Must not send anything. Neighbour: `keys`, the same for names.
"""

from __future__ import annotations

from collections.abc import Sequence

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.crc import combined
from behemoth.ports import MAX_PART_BYTES, MAX_PARTS, MIN_PART_BYTES, PartReceipt


def check_part(key: str, *, number: int, size_bytes: int) -> None:
    """Raises Invalid for a number or a size that no upload can have."""
    if not 1 <= number <= MAX_PARTS:
        raise Invalid(f"part of {key}: expected a number from 1 to {MAX_PARTS}, got {number}", code="part-number")
    if not 1 <= size_bytes <= MAX_PART_BYTES:
        raise Invalid(
            f"part {number} of {key}: expected 1 to {MAX_PART_BYTES} bytes, got {size_bytes} bytes", code="part-size"
        )


def check_parts(
    key: str, parts: Sequence[PartReceipt], *, crc: int, min_bytes: int = MIN_PART_BYTES
) -> list[PartReceipt]:
    """The parts in order of their numbers. Raises Invalid unless they are 1 .. n with all but the last of `min_bytes`
    at least, and Corrupt when their CRCs do not add up to `crc`."""
    ordered = sorted(parts, key=lambda part: part.number)
    numbers = [part.number for part in ordered]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise Invalid(f"complete {key}: expected parts 1 .. n, got {_told(numbers)}", code="part-number")
    for part in ordered:
        check_part(key, number=part.number, size_bytes=part.size_bytes)
        if part.size_bytes < min_bytes and part is not ordered[-1]:
            raise Invalid(
                f"part {part.number} of {key}: expected at least {min_bytes} bytes unless it is the last, "
                f"got {part.size_bytes} bytes",
                code="part-size",
            )
    got = combined((part.crc, part.size_bytes) for part in ordered)
    if got != crc:
        raise Corrupt(f"complete {key}: expected parts of CRC {crc:08x} together, got {got:08x}", code="upload-crc")
    return ordered


def _told(numbers: Sequence[int]) -> str:
    """Enough of the numbers to see what is wrong: up to the first that is out of place."""
    if not numbers:
        return "none"
    wrong = next((at for at, number in enumerate(numbers, 1) if number != at), len(numbers))
    return f"number {numbers[wrong - 1]} in place {wrong}"
