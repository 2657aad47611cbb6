"""Progress of long work: its pace and ETA are of this call, on a terminal and in a log."""

from __future__ import annotations

from functools import partial

import pytest

from behemoth_cli.out import progress as progress_module
from behemoth_cli.out.progress import Progress
from behemoth_cli.views.figures import work

GIB = 1 << 30


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class Screen:
    """What a console shows of progress."""

    width = 200

    def __init__(self, *, is_terminal: bool) -> None:
        self.is_error_terminal = is_terminal
        self.shown: list[str] = []

    def draw(self, text: str) -> None:
        self.shown.append(text.removeprefix("\r\x1b[K"))

    note = draw


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def progress_on(screen: Screen) -> Progress:
    return Progress(screen, partial(work, "exporting"))  # type: ignore[arg-type]  # what is used of a console


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_an_earlier_call_had_done_counts_as_done_and_not_for_the_pace(clock: Clock, is_terminal: bool) -> None:
    screen = Screen(is_terminal=is_terminal)
    progress = progress_on(screen)
    progress.update(80 * GIB, 100 * GIB)
    clock.now_s += 2
    progress.update(84 * GIB, 100 * GIB)
    assert screen.shown == ["exporting: 84.0 GiB of 100.0 GiB (84.0%), 2.00 GiB/s, ETA 8.000 s"]


def test_a_terminal_is_redrawn_and_a_log_gets_a_line_a_minute(clock: Clock) -> None:
    screens = [Screen(is_terminal=True), Screen(is_terminal=False)]
    both = [progress_on(screen) for screen in screens]
    for number in range(181):
        for progress in both:
            progress.update(number * GIB, 360 * GIB)
        clock.now_s += 1
    assert len(screens[0].shown) == 180
    assert [text.split(" of ")[0] for text in screens[1].shown] == [
        "exporting: 1.00 GiB",
        "exporting: 61.0 GiB",
        "exporting: 121.0 GiB",
    ]
    assert all("1.00 GiB/s" in text for text in screens[1].shown)
    assert screens[1].shown[-1].endswith("ETA 3m59s")


def test_short_work_is_silent_and_a_terminal_is_left_clean(clock: Clock) -> None:
    screen = Screen(is_terminal=True)
    progress = progress_on(screen)
    for done in range(5):
        progress.update(done, 5)
        clock.now_s += 0.1
    progress.close()
    assert screen.shown == []
    clock.now_s += 1
    progress.update(4, 5)
    progress.close()
    assert screen.shown[1:] == [""]
