"""The machines of a run, as its file says them: how many, and how close to each other.

The neighbour is `run`, which holds these sections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from behemoth.spec.field import About, Integer, Listing, Text, require_ranges

MAX_NODES, MAX_RANKS_PER_NODE = 100_000, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The machines that a run wants."""

    count: Annotated[int, About(doc="Nodes of the gang.", kind=Integer(minimum=1, maximum=MAX_NODES))]
    gpus_per_node: Annotated[
        int,
        About(
            doc="Ranks on each node, one per GPU (one per process without GPUs).",
            kind=Integer(minimum=1, maximum=MAX_RANKS_PER_NODE),
        ),
    ]
    spares: Annotated[
        int,
        About(
            doc="Nodes kept warm beside the gang to take the place of lost ones.",
            kind=Integer(minimum=0, maximum=100_000),
        ),
    ] = 0
    failure_domain: Annotated[
        int,
        About(
            doc="How many nodes that follow each other in placement order, spares included, may fail together: those "
            "of a rack, or of a power feed. Copies of a node's memory lie in other domains.",
            kind=Integer(minimum=1, maximum=100_000),
        ),
    ] = 1

    def __post_init__(self) -> None:
        require_ranges(self, name="nodes")

    @property
    def num_ranks(self) -> int:
        return self.count * self.gpus_per_node


_LEVELS = Listing(item=Text(what="the name of a topology level", pattern=r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which nodes should be close to each other."""

    required: Annotated[
        tuple[str, ...], About(doc="Levels within which the gang must lie.", kind=_LEVELS, supported=False)
    ] = ()
    preferred: Annotated[
        tuple[str, ...], About(doc="Levels within which the gang should lie.", kind=_LEVELS, supported=False)
    ] = ()
