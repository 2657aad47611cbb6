"""Numbers as people read them: rounded, with a unit. For exact texts see `behemoth.base.units`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from behemoth.spec.mesh import DENSE_AXES, EXPERT_AXES, Axis, Mesh
from behemoth_cli.out.progress import Done

ALL_AXES: tuple[Axis, ...] = (*DENSE_AXES, *(axis for axis in EXPERT_AXES if axis not in DENSE_AXES))
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SPANS = (("d", 86_400), ("h", 3_600), ("m", 60))


def size(num_bytes: float) -> str:
    """`512 B`, `1.5 GiB`: three digits at least where there are units above a byte."""
    value, unit = float(num_bytes), 0
    while value >= 1023.95 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    if unit == 0:
        return f"{int(value)} B"
    return f"{value:.2f} {_UNITS[unit]}" if value < 9.995 else f"{value:.1f} {_UNITS[unit]}"


def axes_text(mesh: Mesh, axes: Sequence[Axis]) -> str:
    """`tp=8 x cp=1 x dp=500 x pp=8`."""
    return " x ".join(f"{axis}={mesh.size(axis)}" for axis in axes)


def rate(bytes_per_s: float | None) -> str:
    """A dash where nobody has measured it."""
    return f"{size(bytes_per_s)}/s" if bytes_per_s is not None else "-"


def seconds(value: float | None) -> str:
    """Short spans to the millisecond, long ones in their two largest units: `0.043 s`, `12.3 s`, `2m05s`, `3d04h`."""
    if value is None:
        return "-"
    if value < 9.9995:
        return f"{value:.3f} s"
    if value < 99.95:
        return f"{value:.1f} s"
    total = round(value)
    for (unit, length), (below, below_length) in zip(_SPANS, (*_SPANS[1:], ("s", 1)), strict=True):
        if total >= length:
            return f"{total // length}{unit}{total % length // below_length:02d}{below}"
    return f"{total} s"


def age(seconds_ago: float) -> str:
    """As kubectl: `5s`, `3m`, `2h15m`, `4d`."""
    total = max(0, int(seconds_ago))
    if total < 120:
        return f"{total}s"
    if total < 3_600:
        return f"{total // 60}m"
    if total < 86_400:
        return f"{total // 3_600}h{total % 3_600 // 60:02d}m"
    return f"{total // 86_400}d{total % 86_400 // 3_600:02d}h"


def since(at_us: int, now_us: int) -> str:
    """The age of what happened then; `-` for 0, which stands for an unknown time."""
    return age((now_us - at_us) / 1e6) if at_us else "-"


def percent(part: float, whole: float) -> str:
    """A dash where there is no whole."""
    return f"{100 * part / whole:.1f}%" if whole else "-"


def work(what: str, told: Done) -> str:
    """How far a long piece of work on bytes is: share, rate and the time that is left at that rate."""
    pace = (told.done - told.before) / told.elapsed_s if told.elapsed_s else 0.0
    left = seconds((told.total - told.done) / pace) if pace else "-"
    share = percent(told.done, told.total)
    return f"{what}: {size(told.done)} of {size(told.total)} ({share}), {rate(pace)}, ETA {left}"


def drained_text(step: int | None, last_step: int) -> str:
    """How far a second store is behind the first."""
    return f"step {step} of {last_step}" if step is not None else f"nothing yet of step {last_step}"


def count(value: float) -> str:
    """`950`, `12.3k`, `4.56M`."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor * 0.9995:  # three digits of less would be 1e+03 of the unit below
            return f"{value / factor:.3g}{unit}"
    return f"{value:.0f}"


def clock(at_us: int) -> str:
    """Time of day, UTC, to the millisecond."""
    return datetime.fromtimestamp(at_us / 1e6, tz=UTC).strftime("%H:%M:%S.%f")[:-3]


def moment(at_us: int) -> str:
    """Date and time, ISO 8601, UTC; `-` for 0, which stands for an unknown time. The number itself where it is none of
    the calendar's: another program may have written nanoseconds."""
    if not at_us:
        return "-"
    try:
        return datetime.fromtimestamp(at_us // 1_000_000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{at_us} us"


def ranks(numbers: Iterable[int]) -> str:
    """Sorted numbers folded into spans, as clush writes them: `0-3,7`."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
