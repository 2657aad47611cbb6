"""Output of many ranks as one stream: nothing is lost, each rank's order is kept, what is alike is told once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.app.run_directory import RunDirectory
from behemoth.base.errors import NotFound
from behemoth_cli import root
from behemoth_cli.commands.logs import LogStream
from behemoth_cli.commands.rank_list import parse_ranks
from behemoth_cli.views.logs import WINDOW, label_width, log_lines, merged
from command_line.cli_rig import NUMPY_RUN

LINES = st.lists(st.sampled_from(["a", "b", "c", "step", ""]), max_size=12)


@given(st.dictionaries(st.integers(0, 5), LINES, max_size=5))
def test_each_rank_keeps_its_lines_and_their_order(lines_of: dict[int, list[str]]) -> None:
    said: dict[int, list[str]] = {rank: [] for rank in lines_of}
    for speakers, line in merged(lines_of):
        assert list(speakers) == sorted(set(speakers))
        for rank in speakers:
            said[rank].append(line)
    assert said == lines_of


@given(LINES, st.integers(1, 6))
def test_ranks_that_say_the_same_are_told_as_one(lines: list[str], count: int) -> None:
    told = list(merged(dict.fromkeys(range(count), lines)))
    assert told == [(tuple(range(count)), line) for line in lines]


def test_a_line_that_only_one_rank_has_does_not_part_the_others() -> None:
    told = list(merged({0: ["start", "end"], 1: ["start", "extra", "end"], 2: ["start", "end"]}))
    assert told == [((0, 1, 2), "start"), ((1,), "extra"), ((0, 1, 2), "end")]


def test_ranks_that_are_further_apart_than_the_window_are_told_apart() -> None:
    noise = [f"noise {number}" for number in range(WINDOW + 1)]
    told = list(merged({0: ["end"], 1: [*noise, "end"]}))
    assert told[0] == ((0,), "end")
    assert told[-1] == ((1,), "end")


def test_a_single_rank_needs_no_label() -> None:
    assert list(log_lines(merged({3: ["x"]}), width=label_width([3]))) == ["x"]
    assert list(log_lines(merged({0: ["x"], 1: ["x"]}), width=label_width([0, 1]))) == ["[0-1] x"]


@pytest.mark.parametrize(("text", "expected"), [("", None), ("3", {3}), ("0-2,7", {0, 1, 2, 7}), ("1,1", {1})])
def test_lists_of_ranks(text: str, expected: set[int] | None) -> None:
    assert parse_ranks(text, option="--rank") == expected


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "runs" / "some")
    directory.open()
    directory.write_document(NUMPY_RUN.read_text())
    directory.found("some", None)
    directory.close()
    return directory


def write(run: RunDirectory, attempt: int, rank: int, text: str) -> Path:
    file = run.logs / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as log:
        log.write(text)
    return file


def test_the_latest_attempt_is_shown_unless_one_is_named(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.path.parents[1])
    write(run, 1, 0, "old\n")
    write(run, 2, 0, "new\nlast line without end")
    write(run, 2, 1, "new\n")
    assert root.run(["logs", "some"]) == 0
    assert capsys.readouterr().out == "[0-1] new\n[0]   last line without end\n"
    assert root.run(["logs", "run/some", "--attempt", "1"]) == 0
    assert capsys.readouterr().out == "old\n"
    assert root.run(["logs", "some", "--rank", "0", "--tail", "1"]) == 0
    assert capsys.readouterr().out == "last line without end\n"
    assert root.run(["logs", "some", "--rank", "9"]) == 102


def test_following_goes_through_rotation_and_into_the_next_attempt(run: RunDirectory) -> None:
    file = write(run, 1, 0, "one\ntw")
    stream = LogStream(run, None, None)
    assert list(stream.first(tail=None, is_final=False)) == ["one"]
    run.open()  # somebody runs there, so an unfinished line is waited for
    write(run, 1, 0, "o\nthree\n")
    file.rename(file.with_name(file.name + ".1"))
    write(run, 1, 0, "four\n")
    assert list(stream.more()) == ["two", "three", "four"]
    write(run, 2, 0, "five\n")
    assert list(stream.more()) == []
    assert stream.attempt == 2
    assert list(stream.more()) == ["five"]
    assert stream.is_open
    run.close()
    assert list(stream.more()) == []
    assert not stream.is_open


def test_following_a_live_run_waits_for_its_first_line(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter([lambda: write(run, 1, 0, "first\nsecond"), run.close])
    monkeypatch.setattr(time, "sleep", lambda _: next(turns, lambda: None)())
    run.open()
    assert root.run(["logs", str(run.path), "-f"]) == 0
    told = capsys.readouterr()
    assert told.out == "first\nsecond\n"
    assert told.err.splitlines() == [
        "run/some has printed nothing that was asked for yet; waiting for it",
        "run/some attempt 1, 1 ranks",
    ]


def test_following_ends_with_a_run_that_never_prints(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: run.close())
    run.open()
    assert root.run(["logs", str(run.path), "-f"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 2)


def test_following_does_not_wait_where_nothing_can_come(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    assert root.run(["logs", str(run.path), "-f"]) == 102
    assert "code: no-logs" in capsys.readouterr().err
    run.open()
    assert root.run(["logs", str(run.path), "-f", "--rank", "2-9"]) == 102
    assert "expected ranks from 0 to 1, got 2,3" in capsys.readouterr().err
    write(run, 2, 0, "attempt 1 is over")
    assert root.run(["logs", str(run.path), "-f", "--attempt", "1"]) == 102
    run.close()


def test_a_run_that_printed_nothing_has_no_logs(run: RunDirectory) -> None:
    with pytest.raises(NotFound, match="expected logs of ranks, got none"):
        LogStream(run, None, None)
