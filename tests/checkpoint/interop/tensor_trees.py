"""Lazy tensors over numpy arrays, for tests: in chunks of any shape, and random trees of views with what they mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from behemoth.checkpoint.interop.reshaped import Flattened, Unflattened
from behemoth.checkpoint.interop.tensors import Chunked, Raw, Tensor, raw_dtype, read_box, whole
from behemoth.checkpoint.interop.views import Concatenated, Permuted, Sliced, Stacked, unstack
from behemoth.checkpoint.layout import DTYPES


def chunked(
    array: np.ndarray, chunk_shape: Sequence[int] | None = None, *, dtype: str = "", threads: int = 1
) -> Chunked:
    """`array` behind a reader that hands out chunks; `dtype` when it is not numpy's own name."""
    name = dtype or array.dtype.name
    raw = array.view(raw_dtype(name))
    sizes = tuple(chunk_shape or array.shape)
    grid = [-(-full // size) for full, size in zip(array.shape, sizes, strict=True)]

    def load(number: int) -> Raw:
        indexes = np.unravel_index(number, grid) if grid else ()
        box = tuple(slice(int(i) * size, int(i) * size + size) for i, size in zip(indexes, sizes, strict=True))
        return raw[box].copy()

    return Chunked(dtype=name, shape=array.shape, chunk_shape=sizes, load=load, threads=threads)


def read(tensor: Tensor) -> np.ndarray:
    """All of a tensor, as what it is."""
    raw = read_box(tensor, whole(tensor))
    return raw.view(DTYPES[tensor.dtype])


def counted(tensor: Chunked) -> list[int]:
    """The numbers of the chunks that will have been loaded, a list that grows."""
    loaded: list[int] = []
    load = tensor.load

    def count(number: int) -> Raw:
        loaded.append(number)
        return load(number)

    object.__setattr__(tensor, "load", count)
    return loaded


@st.composite
def trees(draw: st.DrawFn) -> tuple[Tensor, np.ndarray]:
    """A tree of views, and the array that it stands for."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    tensor, array = draw(leaves(shape))
    for _ in range(draw(st.integers(0, 4))):
        tensor, array = draw(grown(tensor, array))
    return tensor, array


@st.composite
def leaves(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Tensor, np.ndarray]:
    array = np.random.default_rng(draw(st.integers(0, 999))).integers(0, 1 << 16, shape, dtype=np.uint16)
    chunk = tuple(draw(st.integers(1, size)) for size in shape)
    return chunked(array, chunk, threads=draw(st.sampled_from([1, 3]))), array


@st.composite
def grown(draw: st.DrawFn, tensor: Tensor, array: np.ndarray) -> tuple[Tensor, np.ndarray]:
    if not array.ndim:
        return tensor, array
    dim = draw(st.integers(0, array.ndim - 1))
    match draw(st.sampled_from(["permute", "slice", "pick", "join", "stack", "flatten", "unflatten"])):
        case "permute":
            order = tuple(draw(st.permutations(range(array.ndim))))
            return Permuted(inner=tensor, order=order), array.transpose(order)
        case "slice":
            start = draw(st.integers(0, array.shape[dim] - 1))
            stop = draw(st.integers(start + 1, array.shape[dim]))
            return Sliced(inner=tensor, dim=dim, start=start, stop=stop), array.take(range(start, stop), axis=dim)
        case "pick":
            index = draw(st.integers(0, array.shape[dim] - 1))
            return unstack(tensor, dim)[index], np.asarray(array.take(index, axis=dim))
        case "flatten":
            num_dims = draw(st.integers(1, array.ndim - dim))
            shape = (*array.shape[:dim], -1, *array.shape[dim + num_dims :])
            return Flattened(inner=tensor, dim=dim, num_dims=num_dims), array.reshape(shape)
        case "unflatten":
            outer = draw(st.sampled_from([size for size in range(1, 9) if array.shape[dim] % size == 0]))
            sizes = draw(st.sampled_from([(outer, array.shape[dim] // outer), (1, outer, array.shape[dim] // outer)]))
            shape = (*array.shape[:dim], *sizes, *array.shape[dim + 1 :])
            return Unflattened(inner=tensor, dim=dim, sizes=sizes), array.reshape(shape)
        case "join":
            wide = (*array.shape[:dim], draw(st.integers(1, 4)), *array.shape[dim + 1 :])
            other, other_array = draw(leaves(wide))
            return Concatenated(parts=(tensor, other), dim=dim), np.concatenate([array, other_array], axis=dim)
        case _:
            other, other_array = draw(leaves(array.shape))
            at = draw(st.integers(0, array.ndim))
            return Stacked(parts=(tensor, other), dim=at), np.stack([array, other_array], axis=at)
