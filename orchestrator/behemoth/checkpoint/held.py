"""The pieces of a rank in the program's memory: in the host's, or on a device that copies by itself.

Copies of a device are asynchronous: a call only begins one, and the caller has to wait for it (`settle`) before it uses
the bytes, reports them as copied, or reuses the memory on the other side. No device is known here. Neighbours:
`windows` (where a piece lies in its buffer), `staging`, which copies, and the SDK, which has the devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from behemoth.base.errors import Invalid
from behemoth.checkpoint.plan import Piece, RankPlan
from behemoth.checkpoint.windows import ByteRun

Bytes = npt.NDArray[np.uint8]
_BUFFERS = (np.ndarray, memoryview)
"""The usual types of arrays, checked first because an isinstance check against a Protocol is slow."""


class Lane(Protocol):
    """A queue of copies from and to one device. Several threads share it."""

    def settle(self) -> None:
        """Block until every copy that the calling thread has begun is complete."""
        ...


@runtime_checkable
class DeviceMemory(Protocol):
    """The bytes of an array in device memory, of which the device copies runs."""

    @property
    def nbytes(self) -> int: ...

    @property
    def lane(self) -> Lane: ...

    def read(self, run: ByteRun, into: Bytes) -> None:
        """Begin to copy the run's bytes, row by row, to host memory."""
        ...

    def write(self, run: ByteRun, data: Bytes) -> None:
        """Begin to overwrite the run's bytes."""
        ...


Memory: TypeAlias = Buffer | DeviceMemory
"""The memory of a whole local array, C-contiguous."""


class HostPiece(NamedTuple):
    """A piece in host memory. `buffer`: the rank's local array, of which the piece is all, or some columns of its
    rows."""

    piece: Piece
    buffer: Bytes

    @property
    def lane(self) -> None:
        return None

    def take(self, start: int, stop: int, into: Bytes) -> None:
        """Copy bytes [start, stop) of the piece."""
        self.piece.window.gather(self.buffer, start, stop, into)

    def place(self, start: int, stop: int) -> Bytes | None:
        """Where bytes [start, stop) of the piece belong, to be overwritten; None when that is not one run of bytes."""
        views = self.piece.window.views(self.buffer, start, stop)
        return views[0][1] if len(views) == 1 and views[0][1].ndim == 1 else None

    def fill(self, data: Bytes, start: int) -> None:
        """Overwrite the piece from byte `start` on."""
        self.piece.window.scatter(data, start, self.buffer)


class DevicePiece(NamedTuple):
    """A piece on a device; as HostPiece, but that copies are only begun."""

    piece: Piece
    memory: DeviceMemory

    @property
    def lane(self) -> Lane:
        return self.memory.lane

    def take(self, start: int, stop: int, into: Bytes) -> None:
        """Begin to copy bytes [start, stop) of the piece."""
        for run in self.piece.window.runs(start, stop):
            self.memory.read(run, into[run.at - start : run.at - start + run.nbytes])

    def place(self, _start: int, _stop: int) -> None:
        """None: the host cannot write to device memory."""
        return

    def fill(self, data: Bytes, start: int) -> None:
        """Begin to overwrite the piece from byte `start` on; `data` stays as it is until `settle`."""
        for run in self.piece.window.runs(start, start + len(data)):
            self.memory.write(run, data[run.at - start : run.at - start + run.nbytes])


Held: TypeAlias = HostPiece | DevicePiece


def settle(held: Iterable[Held]) -> None:
    """Block until every copy from or to these pieces that the calling thread has begun is complete."""
    for lane in {one.lane for one in held}:
        if lane is not None:
            lane.settle()


def matched(plan: RankPlan, arrays: Mapping[str, Memory], *, is_out: bool) -> list[Held]:
    """Each piece of the plan, in order, with the memory of its array. Raises Invalid when an array is missing, unknown
    or of another size, and with `is_out` (the memory is to be overwritten) when one is read-only."""
    expected_bytes: dict[str, int] = {}
    for piece in plan.pieces:
        expected_bytes[piece.name] = expected_bytes.get(piece.name, 0) + piece.nbytes
    if set(arrays) != set(expected_bytes):
        missing, extra = sorted(expected_bytes.keys() - set(arrays)), sorted(set(arrays) - expected_bytes.keys())
        raise Invalid(
            f"rank {plan.rank}: expected a buffer for each of {len(expected_bytes)} arrays, got "
            f"{len(missing)} missing {missing[:3]} and {len(extra)} unknown {extra[:3]}",
            code="stage-array",
        )
    memories = {name: _checked(name, arrays[name], is_out=is_out) for name in expected_bytes}
    for name, memory in memories.items():
        if memory.nbytes != expected_bytes[name]:
            raise Invalid(
                f"rank {plan.rank}, array {name!r}: expected {expected_bytes[name]} bytes, got {memory.nbytes}",
                code="stage-size",
            )
    return [_held(piece, memories[piece.name]) for piece in plan.pieces]


def _held(piece: Piece, memory: Bytes | DeviceMemory) -> Held:
    return HostPiece(piece, memory) if isinstance(memory, np.ndarray) else DevicePiece(piece, memory)


def _checked(name: str, memory: Memory, *, is_out: bool) -> Bytes | DeviceMemory:
    # numpy arrays of ml_dtypes' element types do not export a buffer, so arrays are viewed, not wrapped.
    if not isinstance(memory, _BUFFERS) and isinstance(memory, DeviceMemory):
        return memory
    array = memory if isinstance(memory, np.ndarray) else np.asarray(memoryview(memory))
    if not array.flags.c_contiguous:
        raise Invalid(
            f"array {name!r}: expected a C-contiguous buffer, got strides {array.strides}",
            hint="pass a contiguous copy",
            code="stage-strides",
        )
    if is_out and not array.flags.writeable:
        raise Invalid(f"array {name!r}: expected a writable buffer, got a read-only one", code="stage-size")
    return array.reshape(-1).view(np.uint8)
