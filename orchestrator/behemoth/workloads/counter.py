"""A numpy program without torch: the smallest that exercises every kind of array which a checkpoint knows.

It learns which byte follows which in the standard library's sources (softmax regression, momentum SGD). Ranks do not
talk to each other: each computes the whole gradient, so replicated arrays stay equal by themselves, and keeps its own
part of two running statistics, one split by rows over ep, one cut into flat pieces over dp. The neighbour is
docs/integrate.md, which explains the loop line by line.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from behemoth.sdk import State, join
from behemoth.workloads.corpus import VOCABULARY, Corpus, Cursor, standard_library
from behemoth.workloads.placement import FlatPiece, Placement, placement_of

SAMPLES, LENGTH = 16, 64
STEPS_ALONE = 200
"""Steps outside a run; in one, the run says how many."""
RATE, MOMENTUM, MEMORY = 20.0, 0.9, 0.99
BUCKETS = 1021
"""Buckets of the trigram statistic: a prime, so that its flat pieces are uneven for every number of ranks."""


class Counter:
    """State of one rank: `table` and `momentum` [V, V], `row_loss` [V - 1] split over ep, `trigrams` flat over dp."""

    def __init__(self, placement: Placement, corpus: Corpus) -> None:
        rows = VOCABULARY - 1
        if rows % placement.ep:
            raise ValueError(f"mesh.ep: expected a divisor of {rows} rows, got {placement.ep}")
        self.cursor = Cursor(corpus, samples_per_step=SAMPLES, length=LENGTH)
        self.table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
        self.momentum = np.zeros_like(self.table)
        self.first_row = placement.ep_index * (rows // placement.ep)
        self.row_loss = np.zeros(rows // placement.ep, np.float64)
        self.piece = FlatPiece(numel=BUCKETS, size=placement.world_size, index=placement.rank)
        self.trigrams = np.zeros(self.piece.stop - self.piece.start, np.float64)

    def gradients(self, step: int) -> tuple[np.ndarray, float]:
        """The gradient of the mean loss of `step` by the table, and that loss in nats; updates the statistics."""
        batch = self.cursor.batch(step, first_slot=0, num_slots=SAMPLES)
        current, following = batch[:, :-1].ravel(), batch[:, 1:].ravel()
        logits = self.table[current]
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        token = np.arange(current.size)
        losses = -np.log(share[token, following])
        self._note(batch, current, losses)
        share[token, following] -= 1.0
        gradient = np.zeros_like(self.table)
        np.add.at(gradient, current, share / np.float32(current.size))
        return gradient, float(losses.mean())

    def update(self, gradient: np.ndarray) -> None:
        self.momentum *= MOMENTUM
        self.momentum += gradient
        self.table -= np.float32(RATE) * self.momentum

    def declare(self, state: State) -> None:
        """Name the arrays; the statistics change while gradients are computed, so they are copied inside `save`."""
        state.array("model/table", self.table, shape=self.table.shape)
        state.array("optim/momentum", self.momentum, shape=self.momentum.shape)
        state.array("stats/row_loss", self.row_loss, shape=(VOCABULARY - 1,), dims={0: "ep"}, mutable_in_forward=True)
        state.array("stats/trigrams", self.trigrams, shape=(BUCKETS,), flat_over="dp", mutable_in_forward=True)
        state.record(get=lambda: {**self.cursor.record()}, set=self.cursor.resume)

    def _note(self, batch: np.ndarray, current: np.ndarray, losses: np.ndarray) -> None:
        sums = np.bincount(current, weights=losses, minlength=VOCABULARY)
        self.row_loss *= MEMORY
        self.row_loss += (1 - MEMORY) * sums[self.first_row : self.first_row + self.row_loss.size]
        hashes = (batch[:, :-2] * 65_599 + batch[:, 1:-1] * 257 + batch[:, 2:]) % BUCKETS
        counts = np.bincount(hashes.ravel(), minlength=BUCKETS)
        self.trigrams *= MEMORY
        self.trigrams += (1 - MEMORY) * counts[self.piece.start : self.piece.stop]


def main() -> None:
    """Join, train to the last step, leave. `workload.args.step_ms` lengthens every step by so many milliseconds."""
    run = join()
    pause_s = _pause_s(run.args)
    counter = Counter(placement_of(run), standard_library(limit_bytes=1 << 18))
    state = State()
    counter.declare(state)
    first = run.restore(state)
    for step in run.steps(first, STEPS_ALONE):
        gradient, loss = counter.gradients(step)
        time.sleep(pause_s)
        run.fence()
        counter.update(gradient)
        # Every rank looks at all samples, and tokens of ranks add up.
        run.report(step, loss=loss, tokens=SAMPLES * LENGTH if run.rank == 0 else 0)
        run.save(step, state)


def _pause_s(args: Mapping[str, object]) -> float:
    """Raises ValueError for an unknown argument or a negative time."""
    for name in args:
        if name != "step_ms":
            raise ValueError(f"workload.args.{name}: expected step_ms, the only argument of this program")
    step_ms = args.get("step_ms", 10)
    if isinstance(step_ms, bool) or not isinstance(step_ms, (int, float)) or not 0 <= step_ms <= 600_000:
        raise ValueError(f"workload.args.step_ms: expected milliseconds from 0 to 600000, got {step_ms!r}")
    return step_ms / 1000


if __name__ == "__main__":
    main()
