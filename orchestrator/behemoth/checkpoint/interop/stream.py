"""A checkpoint read by one process, tensor by tensor, without a run, a mesh, or memory for more than a block.

For hosts that do not train: they fill a generator's memory, compare, convert, count. Neighbours: `stored` (the arrays),
`casts` (another precision on the way), `export` (the same into files).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Invalid
from behemoth.checkpoint.box import Box
from behemoth.checkpoint.interop.casts import converted
from behemoth.checkpoint.interop.stored import stored_tensors
from behemoth.checkpoint.interop.tensors import Tensor, blocks, read_box
from behemoth.checkpoint.layout import DTYPES
from behemoth.checkpoint.name_patterns import NamePatterns
from behemoth.checkpoint.opened import Commit
from behemoth.ports import ObjectStore

BLOCK_BYTES = 64 << 20


class Block(NamedTuple):
    """A part of a tensor, or all of it: `values` are what lies in `box`, (start, stop) per dim, of a tensor of
    `shape`."""

    name: str
    shape: tuple[int, ...]
    box: Box
    values: npt.NDArray[Any]
    """In the shape of the box, of the tensor's type (ml_dtypes' for bfloat16 and float8). The caller owns the array."""


def stream(
    store: ObjectStore,
    commit: Commit,
    *,
    only: Sequence[str] = ("*",),
    dtype: str | None = None,
    limit_bytes: int = BLOCK_BYTES,
    threads: int = 1,
) -> Iterator[Block]:
    """The arrays that a pattern of `only` names, in order of name, each as blocks that follow one another in C order.

    A tensor of at most `limit_bytes` is one block; a larger one is cut along its chunks, so that each chunk is read
    once, unless the chunks of one row of them are larger than the limit. Memory is a block, twice when `dtype` (one of
    `casts.PRECISIONS`) changes it, and a chunk per thread. Blocks while it reads. Raises Invalid at once for a pattern
    that names nothing; Corrupt naming array, chunk and file for damage, before any byte of that chunk is given out.
    """
    tensors = stored_tensors(store, commit, threads=threads)
    patterns = NamePatterns(only)
    unused = patterns.unused(tensors.keys())
    if unused:
        raise Invalid(
            f"checkpoint of step {commit.record.step}: expected patterns of its arrays, got {unused[:3]}",
            hint="patterns such as 'model/*' are compared with whole names",
            code="arrays-listed",
        )
    chosen = {name: one for name, one in tensors.items() if patterns.has(name)}
    return _blocks(chosen if dtype is None else converted(chosen, dtype), limit_bytes)


def _blocks(tensors: dict[str, Tensor], limit_bytes: int) -> Iterator[Block]:
    for name, tensor in tensors.items():
        for box in blocks(tensor, limit_bytes=limit_bytes):
            values = read_box(tensor, box)
            yield Block(name, tensor.shape, box, np.asarray(values).view(DTYPES[tensor.dtype]))
