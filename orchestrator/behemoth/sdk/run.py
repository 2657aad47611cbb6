"""What a training program sees of its run: restore, steps, fence, report, save.

Outside a run the calls do nothing, or return defaults, so that the same script runs by hand or under torchrun.
No store is ever opened here: state goes into and comes out of the memory that the agent owns, or out of files of this
machine that the agent has named. The neighbour `joining` makes the Run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import get_args

from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Step
from behemoth.checkpoint.conversion import Conversion, Intake
from behemoth.sdk.place import Place, RankMesh
from behemoth.sdk.reporting import Real, Reporter, Whole, real, whole
from behemoth.sdk.restoring import restored
from behemoth.sdk.saver import Saver
from behemoth.sdk.state import BoundState, State
from behemoth.sdk.turn import Turn
from behemoth.state.config import WorkPhase
from behemoth.wire.ends import Peer
from behemoth.wire.session import (
    Assigned,
    Standing,
    StepsEnded,
    ToWorker,
)

_log = logging.getLogger(__name__)


class Session:
    """The rank's side of a real run."""

    def __init__(self, peer: Peer[ToWorker], assigned: Assigned) -> None:
        self.peer = peer
        self.limit_s = assigned.wait_limit_us / 1e6
        self.reporter = Reporter(peer, limit_s=self.limit_s)
        self.saver: Saver | None = None
        self.is_standing = False
        self.has_ended = False

    def tell(self, message: object) -> None:
        self.peer.send(message, timeout_s=self.limit_s)

    def tell_end(self) -> None:
        """Tell the agent, once, that no step is left, so that the exit of this process is not a failure. The hang limit
        of a save applies to what it still does, unless it declares another phase."""
        if not self.has_ended:
            self.has_ended = True
            self.reporter.enter("save")
            self.tell(StepsEnded())

    def stand(self, step: Step) -> None:
        """Tell the agent, once, that the rank has its state and is about to train."""
        if not self.is_standing:
            self.is_standing = True
            self.tell(Standing(step=step))


class Run:
    """A joined run, or a world of one. Used by one thread."""

    def __init__(self, place: Place, session: Session | None) -> None:
        self._place = place
        self._session = session
        self._bound: BoundState | None = None
        self._turn = Turn()

    @property
    def rank(self) -> int:
        return self._place.rank

    @property
    def world_size(self) -> int:
        return self._place.world_size

    @property
    def local_rank(self) -> int:
        return self._place.local_rank

    @property
    def mesh(self) -> RankMesh:
        """Axis sizes (`mesh.ep`) and this rank's coordinates (`mesh.coordinate("ep")`)."""
        return self._place.mesh

    @property
    def args(self) -> Mapping[str, bool | int | float | str]:
        """The workload's arguments from the run file; empty outside a run."""
        return self._place.args

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None outside a run."""
        return self._place.total_steps

    @property
    def attempt(self) -> int:
        """The number of this start of the gang, from 1."""
        return self._place.attempt

    @property
    def should_stop(self) -> bool:
        """True once the run's last save is committed: at its last step, or where it is suspended. Programs that do not
        loop over `steps` must check it. It changes inside `save` only, at the same step on all ranks; False outside a
        run."""
        saver = self._session.saver if self._session is not None else None
        return saver is not None and saver.has_ended

    def restore(
        self,
        state: State,
        *,
        only: Iterable[str] = (),
        extra: Iterable[str] = (),
        missing: Iterable[str] = (),
        convert: Mapping[str, Conversion] | None = None,
    ) -> int:
        """Fill `state` with the checkpoint that the run goes on from, in place; the number of completed steps, 0 for a
        fresh beginning. Must be called once, by every rank, before the first step. Blocks until the state is there.

        The checkpoint of another program may have other arrays than `state`: patterns name those to take at all
        (`only`), those of the checkpoint that are not read (`extra`), and those of `state` that the checkpoint lacks
        (`missing`); `convert` tells what an array is made of. What has nothing to be restored from stays as the program
        has it. All ranks say the same. A checkpoint that this run has saved, of the arrays of `state`, comes back whole
        whatever is said: a program says the same at every start. Outside a run nothing is restored.

        Raises Invalid when the declarations do not fit the mesh or the checkpoint, Corrupt when memory was damaged.
        """
        intake = Intake(
            only=_names("only", only),
            extra=_names("extra", extra),
            missing=_names("missing", missing),
            convert=dict(convert or {}),
        )
        intake.require_valid()
        if self._bound is not None:
            raise Conflict("restore: expected one call before the first step, got a second")
        place = self._place
        self._bound = BoundState(state, place.mesh.sizes, place.rank, sharding=place.sharding)
        if self._session is None:
            return 0
        self._session.reporter.enter("restore")
        ready, arena = restored(self._session.peer, self._bound, intake, limit_s=self._session.limit_s)
        self._session.saver = Saver(
            self._session.peer,
            self._bound,
            arena,
            first=ready.step,
            total_steps=self._place.total_steps or 0,
            wait_limit_s=self._session.limit_s,
            threads=ready.threads,
            within=self._session.reporter.within,
        )
        self._session.stand(ready.step)
        self._session.reporter.enter("first_step")
        return ready.step

    def steps(self, first: int, total: int | None = None) -> Iterator[int]:
        """The steps to make after `first` completed ones: first + 1 .. total. Ends early when the run is suspended.

        `total` is needed outside a run only. Raises Invalid when the number of steps is not known, and Conflict for a
        program that left the loop, reported later steps, and comes back to it.
        """
        limit = self._place.total_steps if self._place.total_steps is not None else total
        if limit is None:
            raise Invalid("steps: expected total=, since this process belongs to no run, got none")
        if self._session is not None:
            self._session.stand(Step(first))
            self._session.reporter.enter("first_step")
        for step in range(first + 1, limit + 1):
            if self.should_stop:
                break
            self._begin_step()
            with self._turn.at(step):
                yield step
            self._end_step(Step(step))
        if self._session is not None:
            self._session.tell_end()

    def fence(self, *, updates: bool = True) -> None:
        """Call it once in every step, before the optimizer changes what was saved: blocks until the copy of an earlier
        save is complete. A save whose copy is still open when a later step is done is given up, since nobody can tell
        which bytes it holds.

        It also announces an update: a rank that announced one and still holds the very bytes of the last checkpoint is
        refused, since it saves a stale copy. `updates=False` in a step that changes nothing: gradients are only
        gathered, or the update is skipped.
        """
        if self._session is not None and self._session.saver is not None:
            self._session.saver.fence(is_update=updates)

    def report(self, step: Whole, *, loss: Real | None = None, tokens: Whole = 0) -> None:
        """`step` is completed. Never blocks, unless `loss` is a tensor that its device has not computed yet.

        Takes whatever `int` and `float` take, such as numbers of numpy. Raises Invalid for what is not a number,
        Conflict for another step than `steps` is at, and SystemExit(0) for a step after `should_stop` became true:
        nothing of it is kept, and the run waits for this process to exit.
        """
        completed, count = Step(whole("report: step", step)), whole("report: tokens", tokens)
        if count < 0:
            raise Invalid(f"report: expected tokens >= 0, got {count}", code="report-number")
        number = None if loss is None else real("report: loss", loss)
        self._turn.note_report(completed)
        if self._session is not None:
            self._leave_if_over(self._session, completed)
            self._session.reporter.report(completed, loss=number, tokens=count)
            if self._session.saver is not None:
                self._session.saver.note_done(completed)

    def save(self, step: Whole, state: State) -> None:
        """Call it after every step; it does something only when a save is due. Blocks for one copy into the agent's
        memory. At the last step it waits until the save is committed.

        Raises Conflict for a State that was not given to `restore` and for another step than `steps` is at, Invalid for
        a step that is no whole number.
        """
        completed = Step(whole("save: step", step))
        self._turn.check("save", completed)
        if self._bound is None or not self._bound.is_of(state):
            raise Conflict(
                "save: expected the State that was given to restore, got another",
                hint="call run.restore(state) before the first step, also when there is nothing to restore",
            )
        if self._session is None:
            return
        assert self._session.saver is not None
        if not self._session.reporter.has_reported(completed):
            self.report(completed)
        self._session.saver.save(completed)
        if self.should_stop:
            self._session.tell_end()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Declare that the rank is, say, in `eval`: another hang limit holds until the block ends, and then again that
        of what the rank did before. The block's time counts for no step."""
        phases: tuple[WorkPhase, ...] = get_args(WorkPhase)
        declared = next((phase for phase in phases if phase == name), None)
        if declared is None:
            raise Invalid(f"phase: expected one of {', '.join(phases)}, got {name!r}")
        if self._session is None:
            yield
            return
        with self._session.reporter.within(declared):
            yield

    def _leave_if_over(self, session: Session, step: Step) -> None:
        if self.should_stop and not session.reporter.has_reported(step):
            _log.warning("step %d comes after the run's last save: ended here; leave the loop at run.should_stop", step)
            raise SystemExit(0)

    def _begin_step(self) -> None:
        if self._session is not None:
            if self._session.saver is not None:
                self._session.saver.poll()
            self._session.reporter.begin_step()

    def _end_step(self, step: Step) -> None:
        session = self._session
        if session is None:
            return
        if not session.reporter.has_reported(step):
            self.report(step)
        session.reporter.flush()
        if session.saver is not None and not self.should_stop:
            session.saver.pass_step(step)


def _names(what: str, patterns: Iterable[str]) -> tuple[str, ...]:
    """The patterns as a tuple. Raises Invalid for a single text, each letter of which would be a pattern."""
    listed = () if isinstance(patterns, str) else tuple(patterns)
    if isinstance(patterns, str) or not all(isinstance(one, str) and one for one in listed):
        raise Invalid(f"restore: expected {what} as a list of patterns, got {patterns!r}", code="arrays-listed")
    return listed
