"""The journal: what was written reads back, folds back, and decides the same."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Corrupt
from behemoth.base.ids import Attempt, Step
from behemoth.reconcile.journal import Line, TornLine, audit, decode_lines, effects_of, encode_line, replay
from behemoth.state.evidence import GangRestored, Tick
from reconcile.player import Player, training


def _eventful() -> Player:
    player = training()
    player.commit()
    player.fail(signal=9)
    player.train(10)
    player.lose("b")
    player.train(10)
    player.reach(12)
    return player


def test_replaying_a_journal_gives_the_same_observation() -> None:
    player = _eventful()
    assert replay(decode_lines(player.journal)) == player.obs


def test_an_audit_decides_the_same_at_every_line() -> None:
    player = _eventful()
    assert audit(decode_lines(player.journal)) == []
    assert len(list(effects_of(decode_lines(player.journal)))) > 5


def test_an_audit_names_a_decision_that_was_not_ours() -> None:
    journal = _eventful().journal.replace(b'"incarnation":2', b'"incarnation":7')
    assert len(audit(decode_lines(journal))) >= 1


def test_a_torn_last_line_is_told_and_harmless() -> None:
    player = _eventful()
    whole = len(player.journal)
    lines = list(decode_lines(player.journal + b'{"now_us":7,"evid'))
    assert lines[-1] == TornLine(offset_bytes=whole, num_bytes=17)
    assert replay(lines) == player.obs


@pytest.mark.parametrize("bad", [b"{}\n", b"\n", b'{"now_us":1,"evidence":{"type":"Nonsense"}}\n', b"\xff\n"])
def test_damage_inside_is_refused_with_its_line_number(bad: bytes) -> None:
    line = encode_line(1, Tick())
    with pytest.raises(Corrupt, match="line 2"):
        list(decode_lines(line + bad + line))


def test_an_empty_journal_is_no_run() -> None:
    assert replay(decode_lines(b"")) is None


def test_a_line_reads_back_as_written() -> None:
    assert list(decode_lines(encode_line(5, Tick()))) == [Line(now_us=5, evidence=Tick())]


def test_a_line_of_a_release_that_counted_no_peers_still_reads() -> None:
    old = b'{"now_us":5,"evidence":{"type":"GangRestored","attempt":2,"step":40,"num_from_memory":3}}\n'
    (line,) = decode_lines(old)
    assert isinstance(line, Line)
    assert line == Line(now_us=5, evidence=GangRestored(attempt=Attempt(2), step=Step(40), num_from_memory=3))
    assert encode_line(line.now_us, line.evidence) == old
