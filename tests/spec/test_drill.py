from __future__ import annotations

import pytest

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank, Step
from behemoth.spec.drill import (
    EXAMPLES,
    CorruptNewestCheckpoint,
    FreezeNode,
    HangRank,
    KillRank,
    LoseNode,
    format_fault,
    misaim,
    parse_fault,
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kill rank 1 at step 40", KillRank(rank=Rank(1), step=Step(40))),
        ("lose node 2 at step 80", LoseNode(node=2, step=Step(80))),
        ("freeze node 1 at step 70", FreezeNode(node=1, step=Step(70))),
        ("hang rank 0 at step 60", HangRank(rank=Rank(0), step=Step(60))),
        ("corrupt newest checkpoint at step 90", CorruptNewestCheckpoint(step=Step(90))),
    ],
)
def test_each_fault_has_one_sentence(text: str, fault: object) -> None:
    parsed = parse_fault(text)
    assert parsed == fault
    assert format_fault(parsed) == text
    assert text in EXAMPLES


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("kil rank 1 at step 40", "did you mean 'kill rank 1 at step 40'?"),
        ("Kill  rank 1 at step 40", "did you mean 'kill rank 1 at step 40'?"),
        ("loose nodes 1 at step 4", "did you mean 'lose node 1 at step 4'?"),
        ("kill node 1 at step 40", "faults are: kill rank 1"),
        ("kill rank one at step 40", "faults are: "),
        ("kill rank -1 at step 40", "faults are: "),
        ("kill rank 1", "faults are: "),
        ("kill rank ١ at step 4", "faults are: "),
        ("", "faults are: "),
        ("x" * 5000, "faults are: "),
    ],
)
def test_another_sentence_is_refused_with_the_nearest_one(text: str, hint: str) -> None:
    with pytest.raises(Invalid) as error:
        parse_fault(text, name="--drill")
    assert error.value.message.startswith("--drill: expected a fault such as 'kill rank 1 at step 40'")
    assert error.value.code == "drill-grammar"
    assert error.value.hint.startswith(hint)
    assert len(error.value.message) < 250


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kill rank 3 at step 9", ""),
        ("lose node 2 at step 1", ""),
        ("corrupt newest checkpoint at step 9", ""),
        ("kill rank 4 at step 9", "expected a rank from 0 to 3, got 4"),
        ("freeze node 3 at step 9", "expected a node from 0 to 2, got 3"),
        ("hang rank 0 at step 10", "expected a step from 1 to 9, got 10"),
        ("corrupt newest checkpoint at step 0", "expected a step from 1 to 9, got 0"),
    ],
)
def test_a_fault_must_strike_within_the_run(text: str, reason: str) -> None:
    assert misaim(parse_fault(text), num_ranks=4, num_nodes=3, total_steps=10) == reason
