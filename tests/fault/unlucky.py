"""Training programs for the bad-luck tests, one mishap each. Ranks import this module through PYTHONPATH."""

# ruff: noqa: T201  # workers print on purpose

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

import numpy as np

from behemoth.sdk import Run, State, join
from behemoth.wiring import ending

GIGABYTE = 1 << 30
LINE = b"x" * ((1 << 20) - 1) + b"\n"


def train(at_step: Callable[[int], None]) -> Run:
    """Counts in one array; `at_step` is called before each step is reported."""
    run = join()
    weight = np.zeros(4096, np.float32)
    state = State()
    state.array("weight", weight, shape=weight.shape)
    for step in run.steps(run.restore(state)):
        time.sleep(0.01)
        at_step(step)
        run.fence()
        weight += step
        run.report(step, loss=1.0 / step, tokens=1)
        run.save(step, state)
    return run


def learns() -> None:
    train(lambda _: None)


def gathers_gradients() -> None:
    """Changes its state in each twelfth step only, and says so."""
    changes_little(lambda run, step: run.fence() if step % 12 == 0 else None)


def gathers_gradients_and_fences_each_step() -> None:
    changes_little(lambda run, step: run.fence(updates=step % 12 == 0))


def never_changes_what_it_saves() -> None:
    """Announces an update in every step, none of which reaches the array that it declared."""
    changes_little(lambda run, _: run.fence(), update_at=None)


def declares_that_its_array_is_frozen() -> None:
    changes_little(lambda run, _: run.fence(), update_at=None, frozen=True)


def changes_little(fence: Callable[[Run, int], None], *, update_at: int | None = 12, frozen: bool = False) -> None:
    """Slow enough for saves in passing to be called ahead of its steps."""
    run = join()
    weight = np.ones(4096, np.float32)
    state = State()
    state.array("weight", weight, shape=weight.shape, frozen=frozen)
    for step in run.steps(run.restore(state)):
        time.sleep(0.1)
        fence(run, step)
        if step == update_at:
            weight += 1
        run.report(step, loss=np.float32(1.0), tokens=1)
        run.save(step, state)


def raises_at_step_three() -> None:
    def at_step(step: int) -> None:
        if step == 3:
            raise ValueError("the third batch has a negative length")

    train(at_step)


class Chatty:
    """Says something when the interpreter is taken apart, as libraries with native parts do."""

    def __del__(self) -> None:
        os.write(2, b"chatty: leaked 1 instance\n")


KEPT: list[Chatty] = []


def raises_among_chatty_libraries() -> None:
    KEPT.append(Chatty())
    atexit.register(Path(os.environ["UNLUCKY_FOLDER"], "handler-ran").touch)

    def touch_late() -> None:
        time.sleep(0.3)
        Path(os.environ["UNLUCKY_FOLDER"], "joined").touch()

    thread = threading.Thread(target=touch_late)
    thread.start()
    raise RuntimeError("the dataset is missing")


def raises_beside_a_thread_that_never_ends() -> None:
    ending.FAILED_LIMIT_S = 1  # its test waits for it
    threading.Thread(target=sleeps_for_ever).start()
    raise RuntimeError("the tokenizer is missing")


def leaves_early() -> None:
    """Exits with 0 although steps are left."""

    def at_step(step: int) -> None:
        if step == 5:
            raise SystemExit(0)

    train(at_step)


def never_reports() -> None:
    print("waiting for a licence server", flush=True)
    sleeps_for_ever()


def sleeps_for_ever() -> None:
    while True:
        time.sleep(3600)


def prints_a_gigabyte() -> None:
    def at_step(step: int) -> None:
        if step == 2 and os.environ["RANK"] == "0":
            for _ in range(GIGABYTE // len(LINE)):
                os.write(1, LINE)
            print("that was all", flush=True)

    train(at_step)


def evaluates_at_the_end() -> None:
    """For longer than a save may take, as the run file of its test says."""
    learns_and_then(lambda run: run.phase("eval"), for_s=4)


def evaluates_at_the_end_without_a_word() -> None:
    learns_and_then(lambda _: contextlib.nullcontext(), for_s=3600)


def learns_and_then(phase: Callable[[Run], AbstractContextManager[None]], *, for_s: float) -> None:
    run = train(lambda _: None)
    with phase(run):
        time.sleep(for_s)
    Path(os.environ["UNLUCKY_FOLDER"], f"score-{run.rank}").touch()


def another_model() -> None:
    """The same names as `learns`, another shape."""
    run = join()
    weight = np.zeros(17, np.float32)
    state = State()
    state.array("weight", weight, shape=weight.shape)
    run.restore(state)


def declares_by_rank() -> None:
    """Ranks of different nodes do not agree on an array's shape."""
    run = join()
    weight = np.zeros(8 + run.rank, np.float32)
    state = State()
    state.array("weight", weight, shape=weight.shape)
    for step in run.steps(run.restore(state)):
        run.fence()
        run.save(step, state)


def saves_ahead() -> None:
    run = join()
    weight = np.zeros(8, np.float32)
    state = State()
    state.array("weight", weight, shape=weight.shape)
    for step in run.steps(run.restore(state)):
        run.fence()
        weight += step
        run.save(step + 1, state)


def joins_twice() -> None:
    join()
    join()


def left_open() -> None:
    """An idle pool, a file that nobody closes, and a loop that is left for one of the program's own."""
    pool = ThreadPoolExecutor(2)
    pool.submit(time.sleep, 0)
    KEPT_POOLS.append(pool)
    file = Path(os.environ["UNLUCKY_FOLDER"], f"left-open-{os.environ['RANK']}").open("w")  # noqa: SIM115
    KEPT_FILES.append(file)
    file.write("the last line\n")
    run = join()
    weight = np.zeros(8, np.float32)
    state = State()
    state.array("weight", weight, shape=weight.shape)
    first = run.restore(state)
    for step in run.steps(first):
        if step == first + 3:
            break
        run.fence()
        weight += step
        run.save(step, state)
    for step in range(first + 3, (run.total_steps or 0) + 1):
        time.sleep(0.01)
        run.fence()
        weight += step
        run.report(step)
        run.save(step, state)


def stops_its_own_loop() -> None:
    loops_by_itself(lambda run: run.should_stop)


def never_stops_its_own_loop() -> None:
    loops_by_itself(lambda _: False)


def loops_by_itself(is_over: Callable[[Run], bool]) -> None:
    run = join()
    weight = np.zeros(8, np.float32)
    state = State()
    state.array("weight", weight, shape=weight.shape)
    for step in range(run.restore(state) + 1, (run.total_steps or 0) + 1):
        time.sleep(0.05)
        run.fence()
        weight += step
        run.report(step)
        run.save(step, state)
        if is_over(run):
            break


KEPT_POOLS: list[ThreadPoolExecutor] = []
KEPT_FILES: list[TextIO] = []
