"""What single reports of agents mean to the run."""

from __future__ import annotations

from behemoth.base.ids import Attempt, NodeId
from behemoth.fleet.translate import evidence_of
from behemoth.state.evidence import GangMismatched
from behemoth.wire.reports import ProgramRefused


def test_a_refused_program_is_a_fault_of_the_attempt_that_no_other_would_mend() -> None:
    told = evidence_of(NodeId("n1"), ProgramRefused(attempt=Attempt(2), reason="rank 8: too much"))
    assert told == GangMismatched(attempt=Attempt(2), node=NodeId("n1"), reason="rank 8: too much")
