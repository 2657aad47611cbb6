"""Copies between host memory and the device of a tensor, concurrent with the program's own work on that device.

The only place that knows streams, events and pinned memory: every call of CUDA (or ROCm, by the same names) is here. On
other devices a copy blocks its caller. Nothing is known of checkpoints here. Neighbours: `arrays`, whose tensors these
are, and `behemoth.checkpoint.held`, which says when what was begun must be complete.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from inspect import signature
from typing import Protocol, SupportsInt, cast

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Invalid, Unavailable
from behemoth.checkpoint.address import address_of
from behemoth.checkpoint.arena_memory import before_unmapping
from behemoth.checkpoint.windows import ByteRun
from behemoth.sdk.tensors import Device, Tensor

_log = logging.getLogger(__name__)
_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every device of the process."""


class Lane(Protocol):
    """Copies to and from one device. Any thread may use it but for `follow`."""

    def follow(self) -> None:
        """Order later copies after everything that was queued on the calling thread's current stream."""
        ...

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Begin a copy; neither side is touched until `settle`."""
        ...

    def settle(self) -> None:
        """Block until every copy that the calling thread has begun is complete."""
        ...


class _Stream(Protocol):
    def wait_stream(self, stream: _Stream) -> None: ...


class _Event(Protocol):
    def record(self, stream: _Stream) -> None: ...
    def synchronize(self) -> None: ...


class _Cudart(Protocol):
    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> SupportsInt: ...  # noqa: N802 (its name)
    def cudaHostUnregister(self, address: int) -> SupportsInt: ...  # noqa: N802


class Cuda(Protocol):
    """What is used of torch.cuda."""

    def Stream(self, device: Device) -> _Stream: ...  # noqa: N802 (a class)
    def Event(self, *, blocking: bool) -> _Event: ...  # noqa: N802
    def current_stream(self, device: Device) -> _Stream: ...
    def stream(self, stream: _Stream) -> AbstractContextManager[object]: ...
    def device(self, device: Device) -> AbstractContextManager[object]: ...
    def cudart(self) -> _Cudart: ...


def torch_cuda() -> Cuda:
    """`torch.cuda`. Only for a program that has imported torch."""
    return cast(Cuda, sys.modules["torch"].cuda)


class CudaLane:
    """A stream of its own: copies overlap with what the program computes meanwhile."""

    def __init__(self, cuda: Cuda, device: Device) -> None:
        self._cuda = cuda
        self._device = device
        self._stream = cuda.Stream(device=device)

    def follow(self) -> None:
        with _told(f"{self._device}: copies behind the current stream"):
            self._stream.wait_stream(self._cuda.current_stream(self._device))

    def copy(self, target: Tensor, source: Tensor) -> None:
        # A new thread stands on device 0; without the outer block, leaving the inner one would put a context there.
        with self._cuda.device(self._device), self._cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def settle(self) -> None:
        with _told(f"{self._device}: wait for copies"):
            copied = self._cuda.Event(blocking=True)  # the waiting thread sleeps; else it keeps a core busy
            copied.record(self._stream)
            copied.synchronize()


class WaitingLane:
    """For a device that has no CUDA streams: each copy is complete when it returns."""

    def __init__(self, synchronize: Callable[[], object], device: Device) -> None:
        self._synchronize = synchronize
        self._device = device

    def follow(self) -> None:
        with _told(f"{self._device}: synchronize"):
            self._synchronize()

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def settle(self) -> None:
        return


class Lanes:
    """The lanes of a process, one for each device that holds arrays. Used by the program's thread."""

    def __init__(self) -> None:
        self._lanes: dict[Device, Lane] = {}
        self._is_refusal_told = False

    def to(self, device: Device) -> Lane:
        """Raises Invalid for a device that torch has no module for."""
        if device not in self._lanes:
            self._lanes[device] = _lane(device)
        return self._lanes[device]

    def follow(self) -> None:
        """`Lane.follow` for every device so far."""
        for lane in self._lanes.values():
            lane.follow()

    def pin(self, memory: memoryview) -> None:
        """Let CUDA devices copy from and to a mapping by themselves, until it is unmapped. Without one nothing is done;
        a refusal is logged once, and copies then go through the driver's own buffers. Blocks while pages are locked."""
        device = next((device for device in self._lanes if device.type == "cuda"), None)
        if device is None:
            return
        code = _register(device, memory)
        if code and not self._is_refusal_told:
            self._is_refusal_told = True
            _log.warning(
                "staging memory of %d bytes is not pinned: cudaHostRegister gave %s; copies from %s take longer",
                memory.nbytes,
                code,
                device,
            )


class DeviceBytes:
    """A tensor's elements as bytes on its device: a `behemoth.checkpoint.held.DeviceMemory`."""

    def __init__(self, name: str, tensor: Tensor, lane: Lane) -> None:
        """`tensor` is contiguous, and stays as long as this does."""
        self._name = name
        torch = sys.modules["torch"]
        with torch.inference_mode(False):  # what is made in that mode, other threads may not write to
            self._bytes = tensor.detach().view(-1).view(torch.uint8)
        self._lane = lane

    @property
    def nbytes(self) -> int:
        return self._bytes.numel()

    @property
    def lane(self) -> Lane:
        return self._lane

    def read(self, run: ByteRun, into: npt.NDArray[np.uint8]) -> None:
        """Begin to copy the bytes of `run` from the device into `into`; complete after `lane.settle`. Raises
        Unavailable when the device refuses, for example for want of memory."""
        if run.nbytes:
            with _told(f"array {self._name!r}: copy from its device"):
                self._lane.copy(_host(run, into), self._part(run))

    def write(self, run: ByteRun, data: npt.NDArray[np.uint8]) -> None:
        """Begin to copy `data` to the bytes of `run` on the device. Blocks and raises as `read`."""
        if run.nbytes:
            with _told(f"array {self._name!r}: copy to its device"):
                self._lane.copy(self._part(run), _host(run, data))

    def _part(self, run: ByteRun) -> Tensor:
        extent = self._bytes.narrow(0, run.begin, run.extent_bytes)
        return extent.as_strided((run.num_rows, run.row_bytes), (run.pitch_bytes, 1)) if run.num_rows > 1 else extent


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn a RuntimeError of torch into Unavailable: a device that is short of memory costs a save, not the run."""
    try:
        yield
    except RuntimeError as error:
        raise Unavailable(f"{what}: {error}", code="device-copy") from error


def _host(run: ByteRun, memory: npt.NDArray[np.uint8]) -> Tensor:
    tensor = cast(Tensor, sys.modules["torch"].from_numpy(memory))
    return tensor.view((run.num_rows, run.row_bytes)) if run.num_rows > 1 else tensor


def _lane(device: Device) -> Lane:
    if device.type == "cuda":
        return CudaLane(torch_cuda(), device)
    synchronize = getattr(getattr(sys.modules["torch"], device.type, None), "synchronize", None)
    if synchronize is None:
        raise Invalid(
            f"tensor on {device}: expected a device that torch.{device.type}.synchronize waits for, got none",
            hint="keep a copy in host memory, and declare that",
            code="array-type",
        )
    # Without the device most wait for the current one. Some know no other, as Gaudi's, of which a process has one.
    takes_device = "device" in signature(synchronize).parameters
    return WaitingLane(partial(synchronize, device) if takes_device else synchronize, device)


def _register(device: Device, memory: memoryview) -> int:
    """Pin the pages of a mapping; the cudaError_t number, 0 for success."""
    cuda, address = torch_cuda(), address_of(memory)
    with cuda.device(device):
        code = int(cuda.cudart().cudaHostRegister(address, memory.nbytes, _PORTABLE))
    if code == 0:
        before_unmapping(memory, lambda: _unregister(cuda, device, address))
        return 0
    # CUDA keeps the error for whoever asks next, which would be a kernel of the program's.
    with suppress(RuntimeError):
        sys.modules["torch"].ones(1, device=device)
    return code


def _unregister(cuda: Cuda, device: Device, address: int) -> None:
    """May run on any thread, the one that drops the mapping last; without `cuda.device` the call would create a context
    on that thread's current device."""
    with suppress(RuntimeError), cuda.device(device):  # a forked child has the mapping too, but no device
        cuda.cudart().cudaHostUnregister(address)
