"""What workers print never holds up what their agent has to tell."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from behemoth.agent.output import Output


def test_the_last_lines_of_a_worker_are_what_it_wrote_before_its_end(tmp_path: Path) -> None:
    output = Output()
    output.start()
    pipe, writing = output.open(tmp_path / "rank-0.log", max_bytes=1 << 20)
    os.write(writing, b"one\nlast words\n")
    os.close(writing)
    assert "last words" in asyncio.run(output.last_lines(pipe))
    output.stop()


def test_a_log_on_a_disk_that_stalls_has_no_last_lines_and_nobody_waits_for_them(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    os.mkfifo(log)  # opening it for writing blocks until somebody reads
    output = Output()
    output.start()
    pipe, writing = output.open(log, max_bytes=1 << 20)
    os.write(writing, b"last words\n")
    assert asyncio.run(output.last_lines(pipe)) == ""
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    os.close(writing)
    output.stop()
    os.close(reader)
