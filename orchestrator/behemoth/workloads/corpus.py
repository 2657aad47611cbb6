"""The text that the reference programs learn: the sources of Python's own standard library.

It is real text, on every machine, and needs no download. The corpus is a pure function of the interpreter's
installation; its fingerprint goes into the checkpoint, so that a run is not resumed on another text unnoticed.
Sample ids are a pure function of (step, slot), and the cursor only checks it: a repeated or skipped batch is an error.
Torch and numpy programs both read it, so it must not import torch.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

SEPARATOR = 256
"""The token between two files; bytes are the tokens 0 .. 255."""
VOCABULARY = 257


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """`tokens` is int64[num_tokens]; `fingerprint` is the SHA-256 of their bytes in hex."""

    tokens: npt.NDArray[np.int64]
    fingerprint: str

    def windows(self, length: int) -> int:
        """Number of windows of `length` + 1 tokens, each sharing its last token with the next one's first."""
        return (self.tokens.size - 1) // length

    def sample(self, sample_id: int, length: int) -> npt.NDArray[np.int64]:
        """int64[length + 1]: the window that `sample_id` stands for.

        Within an epoch every window comes exactly once: id -> id * stride + epoch modulo the number of windows, a
        bijection because the stride is coprime to that number.
        """
        count = self.windows(length)
        epoch, index = divmod(sample_id, count)
        start = (index * _coprime_near(0.618 * count, count) + epoch) % count * length
        return self.tokens[start : start + length + 1]


def standard_library(*, limit_bytes: int = 1 << 21) -> Corpus:
    """The top-level modules in name order, cut after `limit_bytes`. Blocks for some milliseconds of reading.

    Raises FileNotFoundError when the interpreter was installed without sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    tokens: list[npt.NDArray[np.int64]] = []
    left_bytes = limit_bytes
    for path in sorted(folder.glob("*.py")):
        if path.name.startswith("_sysconfigdata"):
            continue  # holds the paths of the machine that built the interpreter
        data = path.read_bytes()[:left_bytes]
        left_bytes -= len(data)
        tokens += [np.frombuffer(data, np.uint8).astype(np.int64), np.array([SEPARATOR])]
        if left_bytes <= 0:
            break
    if not tokens:
        raise FileNotFoundError(f"corpus: expected Python sources in {folder}, got none")
    joined = np.concatenate(tokens)
    return Corpus(tokens=joined, fingerprint=hashlib.sha256(joined.astype("<i8").tobytes()).hexdigest())


class Cursor:
    """Hands out the samples of each step once, in order; its record is the data's part of a checkpoint."""

    def __init__(self, corpus: Corpus, *, samples_per_step: int, length: int) -> None:
        self.corpus = corpus
        self._samples_per_step = samples_per_step
        self._length = length
        self._next_sample = 0

    def batch(self, step: int, *, first_slot: int, num_slots: int) -> npt.NDArray[np.int64]:
        """int64[num_slots, length + 1]: this rank's slots of `step` (the first step is 1).

        Raises RuntimeError when `step` is not the one that follows the last batch.
        """
        first = (step - 1) * self._samples_per_step
        if first != self._next_sample:
            raise RuntimeError(f"cursor: expected sample {self._next_sample} next, got sample {first} of step {step}")
        self._next_sample = first + self._samples_per_step
        slots = range(first + first_slot, first + first_slot + num_slots)
        return np.stack([self.corpus.sample(sample_id, self._length) for sample_id in slots])

    def record(self) -> dict[str, int | str]:
        return {
            "next_sample": self._next_sample,
            "samples_per_step": self._samples_per_step,
            "length": self._length,
            "corpus": self.corpus.fingerprint,
        }

    def resume(self, record: object) -> None:
        """Raises ValueError when the record was made from another text or with another batch."""
        if not isinstance(record, dict):
            raise ValueError(f"cursor: expected a record with named fields, got {type(record).__name__}")
        for field, ours in self.record().items():
            if field != "next_sample" and record.get(field) != ours:
                raise ValueError(f"cursor: expected {field} {ours}, got {record.get(field)} in the checkpoint")
        next_sample = record.get("next_sample")
        if not isinstance(next_sample, int) or next_sample < 0:
            raise ValueError(f"cursor: expected next_sample >= 0, got {next_sample!r}")
        self._next_sample = next_sample


def _coprime_near(value: float, count: int) -> int:
    candidate = max(1, int(value))
    while math.gcd(candidate, count) != 1:
        candidate += 1
    return candidate
