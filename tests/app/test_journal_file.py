"""The journal on disk keeps whole lines and forgets a torn one."""

from __future__ import annotations

from pathlib import Path

import pytest

from behemoth.app.journal_file import JournalFile
from behemoth.base.errors import Unavailable


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / "j")
    assert journal.open() == b""
    journal.append(b"one\n")
    journal.append(b"two\n")
    journal.sync()
    journal.close()
    again = JournalFile(tmp_path / "j")
    assert again.open() == b"one\ntwo\n"
    again.close()


def test_a_torn_last_line_is_cut_off_before_the_next_is_written(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"one\ntw")
    journal = JournalFile(tmp_path / "j")
    assert journal.open() == b"one\n"
    journal.append(b"three\n")
    journal.close()
    assert (tmp_path / "j").read_bytes() == b"one\nthree\n"


def test_a_full_disk_is_told_with_the_file_and_a_way_out() -> None:
    journal = JournalFile(Path("/dev/full"))
    journal.open_for_append()
    with pytest.raises(Unavailable, match="No space left") as caught:
        journal.append(b"line\n")
    assert "resumes" in caught.value.hint
    journal.close()
