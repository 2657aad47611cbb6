"""How a run's screens tell of its second store, and with which code an undrained run ends."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import msgspec
import pytest

from behemoth.app.run_directory import DrainState
from behemoth.app.summary import DrainTable, Summary
from behemoth.base.ids import Step
from behemoth_cli.commands.run import conclude
from behemoth_cli.exits import Exit
from behemoth_cli.out.console import Console
from behemoth_cli.views.status import status_page
from behemoth_cli.views.summary import summary_page
from command_line.cli_rig import piped
from command_line.test_views import NOW_US, SUMMARY, look

URL = "s3://bucket/safe/tiny-moe"


def ended(*, step: int, is_complete: bool, is_required: bool = True, trouble: str = "") -> Summary:
    drain = DrainTable(url=URL, step=Step(step), is_complete=is_complete, is_required=is_required, trouble=trouble)
    return msgspec.structs.replace(SUMMARY, drain=drain)


def test_the_summary_says_how_far_the_second_store_is() -> None:
    page = summary_page(ended(step=80, is_complete=False, trouble="step 120: away"))
    assert "drained:" in piped(page)
    assert "step 80 of 120" in piped(page)
    assert json.loads(piped(page, "json"))["drain"] == {
        "url": URL,
        "step": 80,
        "isComplete": False,
        "isRequired": True,
        "trouble": "step 120: away",
    }
    assert "drained" not in piped(summary_page(SUMMARY))


def test_status_says_what_is_drained_when_and_why_the_last_one_was_not() -> None:
    drain = DrainState(
        url=URL, step=Step(20), at_us=NOW_US - 60_000_000, num_bytes=5 << 20, seconds=2.0, trouble="step 40: away"
    )
    seen = look(holder_pid=42)
    page = status_page(replace(seen, drain=drain), now_us=NOW_US)
    lines = {line.split(":", 1)[0]: line.split(":", 1)[1].strip() for line in piped(page).splitlines() if ":" in line}
    assert lines["drained"] == "step 20 of 40, 60s ago, 5.00 MiB in 2.000 s"
    assert lines["drain failed"] == "step 40: away"
    assert json.loads(piped(page, "json"))["drain"]["step"] == 20
    fresh = status_page(replace(seen, drain=DrainState(url=URL, step=None)), now_us=NOW_US)
    assert "nothing yet of step 40" in piped(fresh)
    assert "drain" not in piped(status_page(seen, now_us=NOW_US))


@pytest.mark.parametrize(
    ("is_complete", "is_required", "code", "said"),
    [
        (True, True, Exit.OK, ""),
        (False, True, Exit.RUN_NOT_FINISHED, "code: not-durable"),
        (False, False, Exit.OK, "warning:"),
    ],
)
def test_a_run_is_over_only_once_its_last_checkpoint_is_durable(
    is_complete: bool, is_required: bool, code: Exit, said: str
) -> None:
    told = StringIO()
    console = Console(StringIO(), told, environment={})
    summary = ended(step=80, is_complete=is_complete, is_required=is_required, trouble="away")
    assert conclude(summary, None, console, "", Path("runs/x")) is code
    assert said in told.getvalue()
    assert bool(told.getvalue()) is not is_complete
