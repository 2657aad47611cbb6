"""The model's checkpoint store: which writes are whole, which of them are committed, which lie.

One commit per step, created only if absent, as checkpoint.md wants; a rejected commit gives its step free again. It
decides nothing; `Cluster` calls it when an effect with a good fence says so.
"""

from __future__ import annotations

from functools import partial

from behemoth.base.ids import Step, WriteId
from behemoth.simulation.agenda import Agenda
from behemoth.simulation.facts import Facts
from behemoth.state.effect import CommitRef
from behemoth.state.evidence import Committed, Deleted, SaveFailed


class Store:
    """Commits by step. `lost` lists commits that were deleted although nothing newer was there: always a bug."""

    def __init__(self, *, agenda: Agenda, facts: Facts, commit_us: int, size_bytes: int) -> None:
        self.commits: dict[Step, CommitRef] = {}
        self.num_committed = 0
        self.corrupt: set[WriteId] = set()
        self.lost: list[CommitRef] = []
        self._whole: dict[WriteId, Step] = {}
        self._agenda = agenda
        self._facts = facts
        self._commit_us = commit_us
        self._size_bytes = size_bytes

    def found(self) -> tuple[CommitRef, ...]:
        """Intact by their own word (a flipped bit shows only on restore), in step order."""
        return tuple(self.commits[step] for step in sorted(self.commits))

    def newest(self) -> CommitRef | None:
        return self.commits[max(self.commits)] if self.commits else None

    def holds(self, commit: CommitRef) -> bool:
        return self.commits.get(commit.step) == commit

    def written(self, step: Step, write_id: WriteId) -> None:
        """All bytes of this write are there."""
        self._whole[write_id] = step

    def forget(self, write_id: WriteId) -> None:
        """What an uncommitted write left is rubbish."""
        self._whole.pop(write_id, None)

    def commit(self, step: Step, write_id: WriteId) -> None:
        """Prove and create; answers with Committed or SaveFailed a while later. Idempotent."""
        self._agenda.after(self._commit_us, partial(self._create, step, write_id))

    def reject(self, commit: CommitRef) -> None:
        if self.holds(commit):
            del self.commits[commit.step]
            self._facts.forget("commit", commit.write_id)

    def delete(self, commits: tuple[CommitRef, ...]) -> None:
        """Remove them; missing ones are fine."""
        newest = self.newest()
        for commit in commits:
            if commit == newest:
                self.lost.append(commit)
            self.reject(commit)
        write_ids = tuple(commit.write_id for commit in commits)
        self._facts.tell(Deleted(write_ids=write_ids), "deleted", write_ids[0] if write_ids else "")

    def _create(self, step: Step, write_id: WriteId) -> None:
        present = self.commits.get(step)
        if present is None and self._whole.get(write_id) != step:
            self._refuse(write_id, "receipts are missing")
            return
        if present is not None and present.write_id != write_id:
            self._refuse(write_id, f"step {step} has a commit already, {present.write_id}")
            return
        if present is None:
            self.num_committed += 1
            present = self.commits[step] = CommitRef(step=step, write_id=write_id, size_bytes=self._size_bytes)
            self._whole.pop(write_id)
            self._facts.forget("save", write_id)
        self._facts.tell(Committed(commit=present), "commit", write_id)

    def _refuse(self, write_id: WriteId, reason: str) -> None:
        self._facts.tell(SaveFailed(write_id=write_id, reason=reason), "save", write_id, "failed")
