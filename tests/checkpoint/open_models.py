"""Tensors of well-known open models whose sizes are no powers of two, as layouts: their weights and a float32 master.

What the save grid makes of them is judged by `test_close_chunks`; `python -m checkpoint.open_models`, in tests/, prints
it. Shapes are of the configurations on the models' own pages. Programs' names and small vectors do not matter here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from behemoth.checkpoint.cuts import LEAST_BYTES, with_close_chunks
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import ArraySpec, Chunking, Layout
from behemoth.checkpoint.loads import loads
from behemoth.spec.mesh import Axis, Mesh


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """`count` tensors of one shape, cut over axes."""

    shape: tuple[int, ...]
    dims: tuple[tuple[int, Axis], ...] = ()
    packed: tuple[int, tuple[int, ...]] | None = None
    count: int = 1

    @property
    def is_expert(self) -> bool:
        return any(axis in ("ep", "etp") for _, axis in self.dims)


def rows(*shape: int, count: int = 1) -> Tensors:
    return Tensors(shape=shape, dims=((0, "tp"),), count=count)


def columns(*shape: int, count: int = 1) -> Tensors:
    return Tensors(shape=shape, dims=((1, "tp"),), count=count)


def whole(*shape: int, count: int = 1) -> Tensors:
    return Tensors(shape=shape, count=count)


def experts(num: int, width: int, inner: int, *, count: int) -> list[Tensors]:
    """Gate and up in one, and down; stacked."""
    gate_up = (2, (inner, inner))
    return [
        Tensors(shape=(num, width, 2 * inner), dims=((0, "ep"), (2, "etp")), packed=gate_up, count=count),
        Tensors(shape=(num, inner, width), dims=((0, "ep"), (1, "etp")), count=count),
        whole(num, width, count=count),
    ]


def dense(width: int, inner: int, *, count: int) -> list[Tensors]:
    """Gate, up and down."""
    return [rows(inner, width, count=2 * count), columns(width, inner, count=count)]


def attention(width: int, queries: int, keys: int, *, count: int) -> list[Tensors]:
    square = queries == keys
    inward = [rows(queries, width, count=3 * count)] if square else [rows(queries, width, count=count)]
    inward += [] if square else [rows(keys, width, count=2 * count)]
    return [*inward, columns(width, queries, count=count), whole(width, count=2 * count)]


def latent(width: int, heads: int, *, query_rank: int, count: int) -> list[Tensors]:
    """Attention of DeepSeek's models."""
    return [
        whole(query_rank, width, count=count),
        rows(heads * 192, query_rank, count=count),
        whole(576, width, count=count),
        rows(heads * 256, 512, count=count),
        columns(width, heads * 128, count=count),
    ]


def ends(vocabulary: int, width: int) -> list[Tensors]:
    """Embedding and head."""
    return [rows(vocabulary, width, count=2)]


MODELS: dict[str, list[Tensors]] = {
    "BERT large": [
        rows(30522, 1024),
        whole(512, 1024),
        *attention(1024, 1024, 1024, count=24),
        rows(4096, 1024, count=24),
        columns(1024, 4096, count=24),
    ],
    "GPT-2 XL": [
        rows(50257, 1600),
        whole(1024, 1600),
        columns(1600, 4800, count=48),
        rows(1600, 1600, count=48),
        columns(1600, 6400, count=48),
        rows(6400, 1600, count=48),
    ],
    "Whisper large v3": [
        whole(1280, 128, 3),
        whole(1280, 1280, 3),
        rows(51866, 1280),
        whole(448, 1280),
        *attention(1280, 1280, 1280, count=96),
        rows(5120, 1280, count=64),
        columns(1280, 5120, count=64),
    ],
    "Mamba 2.8B": [
        rows(50280, 2560),
        rows(10240, 2560, count=64),
        whole(5120, 1, 4, count=64),
        columns(192, 5120, count=64),
        rows(5120, 160, count=64),
        rows(5120, 16, count=64),
        columns(2560, 5120, count=64),
    ],
    "Llama 7B": [*ends(32000, 4096), *attention(4096, 4096, 4096, count=32), *dense(4096, 11008, count=32)],
    "Llama 2 13B": [*ends(32000, 5120), *attention(5120, 5120, 5120, count=40), *dense(5120, 13824, count=40)],
    "Llama 3 70B": [*ends(128256, 8192), *attention(8192, 8192, 1024, count=80), *dense(8192, 28672, count=80)],
    "Qwen2.5 7B": [*ends(152064, 3584), *attention(3584, 3584, 512, count=28), *dense(3584, 18944, count=28)],
    "Qwen1.5 MoE": [
        *ends(151936, 2048),
        *attention(2048, 2048, 2048, count=24),
        *experts(60, 2048, 1408, count=24),
        *dense(2048, 5632, count=24),
    ],
    "Qwen3 235B": [
        *ends(151936, 4096),
        *attention(4096, 8192, 512, count=94),
        *experts(128, 4096, 1536, count=94),
    ],
    "gpt-oss 120B": [
        *ends(201088, 2880),
        *attention(2880, 4096, 512, count=36),
        *experts(128, 2880, 2880, count=36),
    ],
    "DeepSeek V2": [
        *ends(102400, 5120),
        *latent(5120, 128, query_rank=1536, count=60),
        *experts(160, 5120, 1536, count=59),
        *dense(5120, 12288, count=1),
        *dense(5120, 3072, count=59),
    ],
    "DeepSeek V3": [
        *ends(129280, 7168),
        *latent(7168, 128, query_rank=1536, count=61),
        *experts(256, 7168, 2048, count=58),
        *dense(7168, 18432, count=3),
        *dense(7168, 2048, count=58),
    ],
    "Kimi K2": [
        *ends(163840, 7168),
        *latent(7168, 64, query_rank=1536, count=61),
        *experts(384, 7168, 2048, count=60),
        *dense(7168, 18432, count=1),
        *dense(7168, 2048, count=60),
    ],
}
UNEVEN = "TP6 DP7, EP7"
"""The mesh on which columns are cut unevenly, each row of which is a chunk (design note 005)."""
MESHES = {
    "TP8 DP16, EP16": Mesh(tp=8, dp=16, ep=16, edp=8),
    UNEVEN: Mesh(tp=6, dp=7, ep=7, edp=6),
    "DP60, EP12": Mesh(dp=60, ep=12, edp=5),
    "one rank": Mesh(),
}
"""Those that divide the models' sizes, and those that do not."""


class Figures(NamedTuple):
    """Of one model on one mesh. Chunks and ratios of arrays are of those from LEAST_BYTES on."""

    stored: float
    """Bytes of all shards / bytes of the arrays."""
    worst: float
    """The same of the array that is worst."""
    num_chunks: int
    mean_chunk: float
    """Of the data."""
    largest_chunk: int


def layout_of(model: str, mesh: Mesh) -> Layout:
    """Weights in bfloat16, whole on all replicas, and a float32 master, which replicas share flat."""
    arrays = chain.from_iterable(_arrays(f"{number:03}", one) for number, one in enumerate(MODELS[model]))
    return Layout(mesh=mesh, arrays=tuple(arrays))


def stored_bytes(grid: Grid) -> int:
    """Of all shards: padding, CRCs, gaps and the index are in it."""
    return grid.file_bytes * grid.num_shards


def figures(layout: Layout) -> Figures:
    of_all = grids(layout)
    large = [grid for grid in of_all if grid.spec.num_bytes >= LEAST_BYTES]
    return Figures(
        stored=sum(map(stored_bytes, of_all)) / sum(grid.spec.num_bytes for grid in of_all),
        worst=max(stored_bytes(grid) / grid.spec.num_bytes for grid in large),
        num_chunks=sum(grid.num_chunks for grid in large),
        mean_chunk=sum(grid.spec.num_bytes for grid in large) / sum(grid.num_chunks for grid in large),
        largest_chunk=max(grid.payload_bytes for grid in large),
    )


def spread(layout: Layout) -> float:
    """Most bytes that a rank writes / the mean."""
    written = loads(layout).written_bytes
    return float(np.max(written) / np.mean(written))


def _arrays(number: str, tensors: Tensors) -> Iterator[ArraySpec]:
    for at in range(tensors.count):
        for slot, dtype, over in (("model", "bfloat16", None), ("master", "float32", "edp")):
            yield ArraySpec(
                name=f"{slot}/{number}.{at}",
                dtype=dtype,
                shape=tensors.shape,
                dims=tensors.dims,
                packed=tensors.packed,
                flat_over=over if over is None or tensors.is_expert else "dp",  # type: ignore[arg-type]
            )


def main() -> None:
    """Print a table; seconds for each row."""
    for model in MODELS:
        for name, mesh in MESHES.items():
            plain = layout_of(model, mesh)
            rules: Chunking = with_close_chunks(plain).chunking
            for layout in {plain.chunking: plain, rules: with_close_chunks(plain)}.values():
                found = figures(layout)
                sys.stdout.write(
                    f"{model:17} {name:15} {layout.chunking:6} {found.stored:.5f} {found.worst:.4f} "
                    f"{spread(layout):.3f} {found.num_chunks:8} "
                    f"{found.mean_chunk / 2**20:6.2f} {found.largest_chunk / 2**20:6.2f}\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
