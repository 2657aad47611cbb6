"""The live frame on a terminal that changes its size while it is painted."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth_cli.out.frame import Frame, Span
from behemoth_cli.out.live import LivePainter
from command_line.fake_terminal import FakeTerminal

WIDTHS = st.lists(st.integers(8, 90), min_size=2, max_size=6)


def frame_of(number: int, width: int, num_lines: int = 3) -> Frame:
    """As wide as the view makes it: one column less than the terminal."""
    lines = [(Span(text=f"{number} ", style="bold"), Span(text=letter * 100)) for letter in "abcdefgh"[:num_lines]]
    return Frame(lines=tuple((head, Span(text=tail.text[: width - 1 - len(head.text)])) for head, tail in lines))


def painter_on(terminal: FakeTerminal) -> LivePainter:
    painter = LivePainter(terminal, color=True, size=terminal.size)
    painter.begin()
    return painter


def lines_of(frame: Frame) -> list[str]:
    return frame.text.splitlines()


def test_a_narrower_terminal_keeps_no_line_of_the_frame_before() -> None:
    terminal = FakeTerminal(columns=80)
    painter = painter_on(terminal)
    painter.line("history")
    painter.frame(frame_of(1, 80))
    terminal.columns = 50
    assert len(terminal.screen) == 1 + 2 * 3  # what was painted has wrapped
    painter.frame(frame_of(2, 50))
    assert terminal.screen == ["history", *lines_of(frame_of(2, 50))]


@given(WIDTHS, st.integers(0, 8), st.integers(0, 8))
def test_whatever_the_sizes_only_history_and_the_last_frame_are_on_the_screen(
    widths: list[int], num_before: int, num_after: int
) -> None:
    terminal = FakeTerminal(columns=widths[0])
    painter = painter_on(terminal)
    history = []
    for number, (before, after) in enumerate(pairwise(widths)):
        terminal.columns = before
        painter.frame(frame_of(number, before, num_before))
        terminal.columns = after
        painter.line(f"line {number}")
        history.append(f"line {number}")
    painter.frame(frame_of(9, widths[-1], num_after))
    assert terminal.screen == [*history, *lines_of(frame_of(9, widths[-1], num_after))]


def test_a_frame_that_was_made_for_a_wider_terminal_is_cut_to_this_one() -> None:
    terminal = FakeTerminal(columns=20)
    painter = painter_on(terminal)
    painter.frame(frame_of(1, 80))
    assert [len(row) for row in terminal.screen] == [19, 19, 19]
    painter.line("history")
    assert terminal.screen[0] == "history"
    assert len(terminal.screen) == 4


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_frame_is_never_taller_than_the_terminal(rows: int) -> None:
    terminal = FakeTerminal(columns=20, rows=rows)
    painter_on(terminal).frame(frame_of(1, 20, 8))
    assert len(terminal.screen) == max(1, rows - 1)


def test_the_cursor_is_given_back_and_the_last_frame_stays() -> None:
    terminal = FakeTerminal(columns=20)
    painter = painter_on(terminal)
    painter.frame(frame_of(1, 20))
    was_hidden = terminal.is_cursor_hidden
    painter.end()
    assert (was_hidden, terminal.is_cursor_hidden) == (True, False)
    terminal.write("$ ")
    assert terminal.screen == [*lines_of(frame_of(1, 20)), "$ "]
