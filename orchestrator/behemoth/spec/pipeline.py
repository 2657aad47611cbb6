"""Which pipeline stage holds which layers: evenly, as told, and interleaved over virtual stages. Values only.

Neighbours: `mesh` (how many stages there are), `model` (which tensors belong to a layer).
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from behemoth.base.errors import Invalid
from behemoth.spec.field import About, Integer, Listing, misfit, require_ranges

_LAYERS = Integer(minimum=0, maximum=10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How layers lie on the stages of a pipeline: parts of consecutive layers, dealt out to the stages in turn."""

    layers: Annotated[
        tuple[int, ...],
        About(
            doc="Layers of each part, in order: one part for each stage, times `virtual`. As even as whole layers "
            "allow where nothing is written; stages that also hold the embedding or the head often get fewer.",
            kind=Listing(item=_LAYERS),
        ),
    ] = ()
    virtual: Annotated[
        int,
        About(
            doc="Parts that a stage holds (virtual stages, an interleaved schedule): part i lies on stage i modulo pp.",
            kind=Integer(minimum=1, maximum=1000),
        ),
    ] = 1

    def __post_init__(self) -> None:
        require_ranges(self, name="pipeline")
        wrong = next((number for number in self.layers if misfit(_LAYERS, number)), None)
        if wrong is not None:
            raise Invalid(f"pipeline.layers: {misfit(_LAYERS, wrong)}", code="out-of-range")

    def num_parts(self, num_stages: int) -> int:
        return num_stages * self.virtual

    def stage_of_layer(self, layer: int, num_layers: int, num_stages: int) -> int:
        """The stage that holds a layer. The pipeline must suit the model (`misfits`)."""
        if not self.layers:
            return layer * self.num_parts(num_stages) // num_layers % num_stages
        ends = list(itertools.accumulate(self.layers))
        return bisect_right(ends, layer) % num_stages

    def misfits(self, num_layers: int, num_stages: int) -> Iterator[tuple[str, str]]:
        """Fields that do not suit so many layers and stages, each with the reason as `expected ..., got ...`.
        `num_layers` is 0 where it is not known."""
        num_parts, got = self.num_parts(num_stages), len(self.layers)
        if self.layers and got != num_parts:
            yield "layers", f"expected {num_parts} parts (pp {num_stages} x virtual {self.virtual}), got {got}"
        elif self.layers and num_layers and sum(self.layers) != num_layers:
            yield "layers", f"expected the model's {num_layers} layers in all, got {sum(self.layers)}"
        elif not self.layers and self.virtual > 1 and 0 < num_layers < num_parts:
            yield "virtual", f"expected at most {num_layers // num_stages} parts per stage, got {self.virtual}"


EVEN = Pipeline()
"""One part for each stage, as even as whole layers allow."""
