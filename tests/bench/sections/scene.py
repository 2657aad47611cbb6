"""What all sections of `checkpoint_local.py` are told, and how seconds become the rates that they print."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contenders.ours import Ours
from contenders.state import State, layer_shapes, new_state
from page_states import large_share, put_together


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """`tmpfs` and `disk` are folders of these kinds; `peers` the names of those to run."""

    num_layers: int
    num_rounds: int
    num_threads: int
    tmpfs: Path
    disk: Path
    peers: Sequence[str]
    is_quick: bool

    @contextmanager
    def folder(self, place: str) -> Iterator[Path]:
        """A new one on `tmpfs` or `disk`, removed afterwards."""
        above = self.tmpfs if place == "tmpfs" else self.disk
        with tempfile.TemporaryDirectory(prefix="behemoth-bench-", dir=above) as root:
            yield Path(root)

    @contextmanager
    def ours_in(self, folder: Path) -> Iterator[tuple[Ours, State]]:
        """Ours with a warm state to save."""
        shapes = layer_shapes(self.num_layers)
        put_together()
        ours = Ours(shapes, folder, num_threads=self.num_threads)
        try:
            state = new_state(shapes)
            ours.bind(state.arrays)
            for name, view in (("state", state.memory), ("staging memory", ours.staging)):
                print(f"large pages of the {name}: {large_share(view):.0%}", file=sys.stderr, flush=True)
            yield ours, state
        finally:
            ours.close()


def rates(seconds: Sequence[float], num_bytes: int) -> list[float]:
    """GB/s."""
    return [num_bytes / 1e9 / each for each in seconds]


def with_suffix(samples: Mapping[str, float], suffix: str) -> dict[str, float]:
    return {f"{metric}{suffix}": value for metric, value in samples.items()}
