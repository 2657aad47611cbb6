"""The log of one rank."""

from __future__ import annotations

from pathlib import Path

from behemoth.agent.ranklog import RankLog, log_path
from behemoth.base.ids import Attempt, Rank


def test_the_path_names_attempt_and_rank() -> None:
    assert log_path("/logs", Attempt(1), Rank(3)) == Path("/logs/attempt-0001/rank-00003.log")


def test_a_log_stays_within_its_size_and_keeps_the_newest(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "a" / "rank.log", max_bytes=1000)
    for number in range(1000):
        log.append(b"line %04d\n" % number)
    log.close()
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["rank.log", "rank.log.1"]
    assert sum((tmp_path / "a" / name).stat().st_size for name in files) <= 1000
    assert (tmp_path / "a" / "rank.log").read_bytes().endswith(b"line 0999\n")


def test_one_piece_larger_than_the_log_leaves_its_end(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "rank.log", max_bytes=1000)
    log.append(b"x" * 5000 + b"the end\n")
    log.close()
    assert (tmp_path / "rank.log").read_bytes().endswith(b"the end\n")
    assert (tmp_path / "rank.log").stat().st_size <= 1000


def test_last_lines_are_whole_lines(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "rank.log", max_bytes=1 << 20)
    for number in range(5000):
        log.append(b"line %04d\n" % number)
    log.close()
    lines = log.last_lines().splitlines()
    assert lines[-1] == "line 4999"
    assert all(line.startswith("line ") for line in lines)


def test_a_folder_that_cannot_be_made_costs_lines_and_says_so_later(tmp_path: Path) -> None:
    blocker = tmp_path / "a"
    blocker.write_text("in the way")
    log = RankLog(blocker / "rank.log", max_bytes=1000)
    log.append(b"lost\n")
    assert log.last_lines() == "lost"
    blocker.unlink()
    log.append(b"kept\n")
    log.close()
    assert (blocker / "rank.log").read_text() == "[behemoth: 5 bytes of output are missing here]\nkept\n"
