"""Scales of blocks by plain loops over whole arrays, to compare with."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.layout import DTYPES

Array = npt.NDArray[Any]


def scaled(values: Array, block: tuple[int, ...], dtype: str) -> tuple[Array, Array]:
    """Values as float8, and the scales of their blocks."""
    scales = scales_of(values, block, dtype)
    quotients = values.astype(np.float32) / blocked(scales, values.shape, block)
    most = float(ml_dtypes.finfo(DTYPES[dtype]).max)
    return np.asarray(np.clip(quotients, -most, most)).astype(DTYPES[dtype]).reshape(values.shape), scales


def blocked(scales: Array, shape: tuple[int, ...], block: tuple[int, ...]) -> Array:
    """Each scale as often as its block has elements."""
    for dim, (size, per_scale) in enumerate(zip(shape, block, strict=True)):
        scales = np.repeat(scales, min(per_scale, size), axis=dim).take(range(size), axis=dim)
    return scales


def scales_of(values: Array, block: tuple[int, ...], dtype: str) -> Array:
    """By plain loops over blocks."""
    counts = [-(-size // per_scale) for size, per_scale in zip(values.shape, block, strict=True)]
    scales = np.ones(counts, dtype=np.float32)
    for index in np.ndindex(*counts):
        inside = values[tuple(slice(i * size, (i + 1) * size) for i, size in zip(index, block, strict=True))]
        largest = np.abs(inside.astype(np.float32)).max()
        if largest:
            scales[index] = max(largest / np.float32(ml_dtypes.finfo(DTYPES[dtype]).max), np.float32(2.0**-126))
    return scales
