"""A stand-in for a GPU: tensors that say `cuda:0`, and a torch.cuda whose streams do nothing before somebody waits.

Their elements lie in CPU tensors, where only operations on the tensor reach them. A copy that does not block reads
and writes when its stream is waited for, not earlier: who counts on bytes too soon, or uses the other side's memory
again, has wrong ones. It knows nothing of real devices' memory, drivers and speeds, nor of what CUDA refuses.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._pytree import tree_map

from behemoth.sdk import arrays, devices

DEVICE = "cuda:0"
aten = torch.ops.aten


class FakeStream:
    """Work in its order; each piece of it is done once somebody waits for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.RLock()
        self._left: deque[Callable[[], object]] = deque()
        self._num_given = 0

    def give(self, work: Callable[[], object]) -> int:
        """How much work there is now."""
        with self._lock:
            self._left.append(work)
            self._num_given += 1
            return self._num_given

    def wait_stream(self, other: FakeStream) -> None:
        so_far = other.given
        self.give(lambda: other.finish(so_far))

    @property
    def given(self) -> int:
        with self._lock:
            return self._num_given

    @property
    def is_idle(self) -> bool:
        with self._lock:
            return not self._left

    def finish(self, so_far: int | None = None) -> None:
        with self._lock:
            while self._left and (so_far is None or self._num_given - len(self._left) < so_far):
                self._left.popleft()()


class FakeEvent:
    def __init__(self, cuda: FakeCuda, *, blocking: bool) -> None:
        assert blocking, "a wait that keeps a core busy"
        self._cuda = cuda
        self._at: tuple[FakeStream, int] | None = None

    def record(self, stream: FakeStream) -> None:
        self._at = stream, stream.given

    def synchronize(self) -> None:
        assert self._at is not None
        self._cuda.before_wait()
        stream, so_far = self._at
        stream.finish(so_far)
        self._cuda.log.append("synchronize")


class FakeCuda:
    """torch.cuda, as far as the SDK knows it. `pinned`: what is registered, by address. `refuses`: its error."""

    def __init__(self) -> None:
        self.main = FakeStream("main")
        self.log: list[str] = []
        self.pinned: dict[int, int] = {}
        self.refuses = 0
        self.lanes: list[FakeStream] = []
        self.before_copy: Callable[[], object] = lambda: None
        self.before_wait: Callable[[], object] = lambda: None
        self._own = threading.local()

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802 (as torch has it)
        assert device == torch.device(DEVICE)
        self.log.append("stream")
        self.lanes.append(FakeStream("lane"))
        return self.lanes[-1]

    def Event(self, *, blocking: bool) -> FakeEvent:  # noqa: N802
        return FakeEvent(self, blocking=blocking)

    def current_stream(self, device: torch.device | None = None) -> FakeStream:
        assert device in (None, torch.device(DEVICE))
        stream: FakeStream = getattr(self._own, "stream", self.main)
        return stream

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before = self.current_stream()
        self._own.stream = stream
        try:
            yield
        finally:
            self._own.stream = before

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        assert device == torch.device(DEVICE)
        before, self._own.device = self._current_device(), device
        try:
            yield
        finally:
            self._own.device = before

    def _current_device(self) -> torch.device | None:
        """None: another one, as a new thread has, where nothing may be made."""
        device: torch.device | None = getattr(self._own, "device", None)
        return device

    def cudart(self) -> FakeCuda:
        return self

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        assert flags == 1
        assert self._current_device() is not None
        assert is_mapped(address)
        assert address not in self.pinned
        self.log.append("register")
        if self.refuses == 0:
            self.pinned[address] = num_bytes
        return self.refuses

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        assert is_mapped(address), "unmapped before"
        assert self._current_device() is not None
        self.log.append("unregister")
        del self.pinned[address]
        return 0

    def copy(self, target: torch.Tensor, source: torch.Tensor, *, blocks: bool) -> None:
        """Between plain tensors."""
        self.before_copy()
        stream = self.current_stream()
        assert blocks or self._current_device() is not None
        done = stream.give(lambda: target.copy_(source))
        self.log.append(f"{'blocking ' if blocks else ''}copy {target.numel()} on {stream.name}")
        if blocks:
            stream.finish(done)


def is_mapped(address: int) -> bool:
    with open("/proc/self/maps") as maps:
        ranges = [[int(end, 16) for end in line.split(" ", 1)[0].split("-")] for line in maps]
    return any(begin <= address < end for begin, end in ranges)


class OnDevice(torch.Tensor):
    """A tensor of the stand-in. Shares the elements of `inner`, a CPU tensor."""

    inner: torch.Tensor  # type: ignore[assignment]  # torch has a method of this name
    seen: ClassVar[Counter[str]]
    """Operations so far."""
    cuda: FakeCuda  # type: ignore[assignment]  # here it is the device

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: str = DEVICE) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(device),
        )
        made.inner = inner
        return made

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def is_conj(self) -> bool:
        return self.inner.is_conj()

    def is_neg(self) -> bool:
        return self.inner.is_neg()

    # torch's own of what follows asks for a driver.
    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> OnDevice:
        self.cuda.copy(self.inner, _inner(source), blocks=not non_blocking)
        return self

    def __getitem__(self, elements: Any) -> Any:
        return self.narrow(0, elements.start, elements.stop - elements.start)

    def __setitem__(self, elements: Any, value: Any) -> None:
        self.inner[elements] = value

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        cls.seen[func.overloadpacket.__name__] += 1
        if func is aten.copy_.default:
            target, source, *non_blocking = args
            cls.cuda.copy(_inner(target), _inner(source), blocks=not any(non_blocking))
            return target
        found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs or {}))
        device = next(str(one.device) for one in args if isinstance(one, OnDevice))
        return tree_map(lambda one: OnDevice(one, device) if isinstance(one, torch.Tensor) else one, found)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


@contextmanager
def stand_in() -> Iterator[FakeCuda]:
    """In this block torch has such a device, and the SDK takes its tensors for plain ones."""
    with pytest.MonkeyPatch.context() as patch:
        cuda = FakeCuda()
        patch.setattr(devices, "torch_cuda", lambda: cuda)
        patch.setattr(arrays, "_require_memory", lambda name, tensor: None)  # noqa: ARG005
        patch.setattr(OnDevice, "cuda", cuda, raising=False)
        patch.setattr(OnDevice, "seen", Counter(), raising=False)
        yield cuda
