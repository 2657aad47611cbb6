"""The training state that the contenders of `checkpoint_local.py` save, and the buffers that they restore into.

One block of page-aligned memory, warm, of which every array is a view: so that a raw baseline can write the same bytes
from the same memory with direct I/O, and nobody pays for fresh pages. Knows no contender.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

LAYER_SHAPES: Shapes = {
    **dict.fromkeys(("q", "k", "v", "o"), (2048, 2048)),
    **dict.fromkeys(("gate", "up", "down"), (2048, 8192)),
    "norm": (2048,),
}
"""One layer of 256 MiB in float32: the shapes of a dense decoder of width 2048. Each is a multiple of a page."""
LAYER_BYTES = 256 << 20
ITEM_BYTES = 4
DAMAGE = np.uint32(0xDEADBEEF)
_WORDS_PER_PAGE = mmap.PAGESIZE // ITEM_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """`memory` holds the arrays one after another, without gaps."""

    arrays: Arrays
    memory: memoryview

    @property
    def num_bytes(self) -> int:
        return self.memory.nbytes


def layer_shapes(num_layers: int) -> Shapes:
    """Names as a checkpoint has them."""
    return {f"layers.{layer}.{name}": shape for layer in range(num_layers) for name, shape in LAYER_SHAPES.items()}


def new_state(shapes: Shapes) -> State:
    """Random numbers, the same in every run."""
    num_bytes = sum(prod(shape) for shape in shapes.values()) * ITEM_BYTES
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # as a program's own arrays are
    memory.madvise(mmap.MADV_HUGEPAGE)
    random = np.random.default_rng(1)
    arrays: dict[str, np.ndarray] = {}
    at = 0
    for name, shape in shapes.items():
        arrays[name] = np.frombuffer(memory, np.float32, count=prod(shape), offset=at).reshape(shape)
        random.random(out=arrays[name], dtype=np.float32)
        at += arrays[name].nbytes
    return State(arrays=arrays, memory=memoryview(memory))


def timed(work: Callable[[], object]) -> float:
    """Seconds that it took."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def restored(arrays: Arrays, restore: Callable[[], Arrays | None]) -> float:
    """Seconds of a restore that was seen to bring the state back: nobody restores nothing.

    The first word of every page is overwritten before. `restore` fills `arrays`, or returns the arrays that it made.
    """
    words = {name: _marked(array) for name, array in arrays.items()}
    before = {name: word.copy() for name, word in words.items()}
    for word in words.values():
        word[:] = DAMAGE
    begin = time.perf_counter()
    found = restore()
    seconds = time.perf_counter() - begin
    if not all(np.array_equal(_marked((found or arrays)[name]), kept) for name, kept in before.items()):
        raise SystemExit("restore did not bring back what was saved: the numbers would mean nothing")
    for name, kept in before.items():
        words[name][:] = kept
    return seconds


def _marked(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint32)[::_WORDS_PER_PAGE]
