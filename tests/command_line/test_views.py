"""What views make of models: pages with golden files, numbers, the live frame."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from msgspec import structs

from behemoth.app.events import Event
from behemoth.app.restore_book import RestoreRow
from behemoth.app.snapshot import NodeView, Snapshot, snapshot
from behemoth.app.summary import CheckpointTable, FaultTable, LedgerTable, Summary
from behemoth.base.ids import Attempt, NodeId, Rank, Slot, Step, WriteId
from behemoth.checkpoint.rank_bytes import rank_bytes
from behemoth.fleet.progress import Vitals
from behemoth.reconcile.decide import decide
from behemoth.spec.decode import decode_run
from behemoth.spec.model import named_inventory
from behemoth.spec.schema import explain
from behemoth.state.effect import CommitRef
from behemoth.state.observation import Observation
from behemoth.state.status import RunStatus
from behemoth_cli.out.console import Console
from behemoth_cli.out.table import Column, Listing, Page, Section, one_line
from behemoth_cli.views import figures
from behemoth_cli.views.events import event_line
from behemoth_cli.views.fields import field_page
from behemoth_cli.views.live import Pace, live_frame, paced
from behemoth_cli.views.plan import plan_page
from behemoth_cli.views.status import Look, node_listing, run_listing, state_of, status_page
from behemoth_cli.views.summary import ledger_listing, summary_page
from command_line.cli_rig import NUMPY_RUN, matches_golden, on_screen, piped
from reconcile.player import Player

WIDE = Page(
    kind="Checkpoint",
    sections=(
        Section(pairs=(("run", "small"), ("committed", "2026-11-27 00:57:01 UTC"), ("layout", "sha256:" + "ab" * 32))),
        Section(
            title="Arrays",
            listing=Listing(
                kind="ArrayList",
                columns=(
                    Column(name="name"),
                    Column(name="dtype"),
                    Column(name="shape"),
                    Column(name="bytes", align="right"),
                    Column(name="shared over"),
                ),
                rows=(
                    ("model/layers.0.feed_forward.w1", "float32", "16x16384", "1073741824", "dim 1: tp, flat: cp x dp"),
                    ("model/norm", "bfloat16", "4096", "8192", "-"),
                ),
            ),
        ),
    ),
)
OPENED_US = 1_800_000_000_000_000
NOW_US = OPENED_US + 83_400_000

SUMMARY = Summary(
    name="tiny-moe",
    outcome="succeeded",
    reason="all 120 steps are done and committed",
    step=Step(120),
    total_steps=Step(120),
    num_attempts=3,
    digest="sha256:" + "0123456789abcdef" * 4,
    ledger=LedgerTable(
        wall_s=83.4,
        num_ranks=4,
        useful_s=290.0,
        checkpoint_stall_s=1.6,
        detect_s=2.0,
        restart_s=3.0,
        restore_s=1.0,
        recomputed_s=6.0,
        idle_s=30.0,
    ),
    faults=(
        FaultTable(
            cause="signal",
            node=NodeId("node-0"),
            rank=Rank(1),
            reason="rank 1 on node node-0 ended with signal 9",
            at_us=OPENED_US + 30_000_000,
            detect_s=0.043,
            restart_s=0.31,
            restore_s=0.055,
            to_first_step_s=0.72,
            to_regained_s=2.5,
        ),
        FaultTable(
            cause="node",
            node=NodeId("node-1"),
            rank=None,
            reason="connection closed",
            at_us=OPENED_US + 60_000_000,
            detect_s=0.2,
            restart_s=None,
            restore_s=None,
            to_first_step_s=None,
            to_regained_s=None,
        ),
    ),
    num_faults=2,
    restores=(
        RestoreRow(
            attempt=Attempt(2),
            step=Step(40),
            num_from_memory=4,
            num_from_peer=0,
            num_from_disk=0,
            num_from_several=0,
            num_from_store=0,
            peer_bytes=0,
            disk_bytes=0,
            store_bytes=0,
            missed="",
        ),
        RestoreRow(
            attempt=Attempt(3),
            step=Step(80),
            num_from_memory=0,
            num_from_peer=1,
            num_from_disk=1,
            num_from_several=1,
            num_from_store=1,
            peer_bytes=3 << 20,
            disk_bytes=7 << 20,
            store_bytes=5 << 20,
            missed="node node-2: memory of rank 3: expected a snapshot of write a2-4, got none",
        ),
    ),
    checkpoints=(
        CheckpointTable(
            step=Step(60), write_id=WriteId("a1-3"), size_bytes=5 << 20, seconds=0.25, bytes_per_s=float(20 << 20)
        ),
        CheckpointTable(step=Step(120), write_id=WriteId("a3-6"), size_bytes=5 << 20, seconds=None, bytes_per_s=None),
    ),
)
EVENTS = (
    Event(at_us=OPENED_US, level="normal", reason="RunOpened", message="run of 4 ranks on 2 nodes", attempt=0, step=0),
    Event(
        at_us=OPENED_US + 70_000_000,
        level="normal",
        reason="Committed",
        message="checkpoint of step 40 committed (5MiB)",
        attempt=1,
        step=41,
    ),
    Event(
        at_us=OPENED_US + 80_000_000,
        level="warning",
        reason="WorkerFailed",
        message="rank 1 ended: \x1b[31mred\x1b[0m\nand more",
        attempt=1,
        step=55,
        node=NodeId("node-0"),
        rank=Rank(1),
    ),
)


def nodes(count: int) -> tuple[NodeView, ...]:
    conditions = ("working", "working", "spare", "late", "coming", "lost")
    return tuple(
        NodeView(
            name=NodeId(f"node-{number}"),
            slot=Slot(number) if number < 2 else None,
            condition=conditions[number % 6],  # type: ignore[arg-type]
            incarnation=1 + number // 2,
            silent_us=120_000 if number < 2 else None,
        )
        for number in range(count)
    )


def look_of(run_nodes: int = 3, *, phase: str = "training", is_led: bool = True) -> Snapshot:
    return Snapshot(
        name="tiny-moe",
        now_us=NOW_US,
        opened_us=OPENED_US,
        total_steps=120,
        status=RunStatus(
            phase=phase,  # type: ignore[arg-type]
            reason="Training",
            message="training since step 40",
            attempt=Attempt(2),
            step=Step(57),
            best_step=Step(57),
            commit=CommitRef(step=Step(40), write_id=WriteId("a1-2"), size_bytes=5 << 20),
            num_failures=0,
            num_save_failures=0,
            save_message="",
            outcome=None,
        ),
        vitals=Vitals(attempt=Attempt(2), step=Step(58), loss=2.43119, tokens=120_000),
        step_us=213_000,
        nodes=tuple(replace(node, condition=node.condition if is_led else "released") for node in nodes(run_nodes)),
    )


def look(*, holder_pid: int | None) -> Look:
    return Look(
        name="tiny-moe",
        path="runs/tiny-moe",
        holder_pid=holder_pid,
        snapshot=look_of(is_led=holder_pid is not None),
        num_ranks=4,
        ranks_per_node=2,
        spent=None,
        saves=(),
        events=EVENTS,
    )


def seen(observation: Observation, *, is_led: bool = True) -> Snapshot:
    return snapshot(
        "small",
        observation,
        decide(observation).status,
        now_us=observation.now_us,
        vitals=None,
        connected=dict.fromkeys(observation.nodes, 120_000),
        is_led=is_led,
    )


def names_in(value: Any) -> list[str]:
    """Keys at any depth."""
    if isinstance(value, dict):
        return [*value, *(name for entry in value.values() for name in names_in(entry))]
    return [name for entry in value for name in names_in(entry)] if isinstance(value, list | tuple) else []


def on_plain_screen(page: Page, width: int) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", on_screen(page, width))


@pytest.mark.parametrize("width", range(26, 130))
def test_no_terminal_is_too_narrow_for_words_and_none_gets_longer_lines(width: int) -> None:
    screen = on_plain_screen(WIDE, width)
    assert max(map(len, screen.splitlines())) <= width
    found = screen.split()
    for word in ("committed:", "2026-11-27", "float32", "bfloat16", "16x16384", "1073741824", "8192", "model/norm"):
        assert word in found
    assert "sha256:" + "ab" * 32 in "".join(found)  # what is longer is folded, not cut


def test_where_a_table_would_break_words_each_row_is_a_block() -> None:
    lines = [line.rstrip() for line in on_plain_screen(WIDE, 40).splitlines()]
    first = lines.index("Arrays") + 1
    assert lines[first:] == [
        "  name:        model/layers.0.feed_forwa",
        "               rd.w1",
        "  dtype:       float32",
        "  shape:       16x16384",
        "  bytes:       1073741824",
        "  shared over: dim 1: tp, flat: cp x dp",
        "",
        "  name:        model/norm",
        "  dtype:       bfloat16",
        "  shape:       4096",
        "  bytes:       8192",
        "  shared over: -",
    ]


def test_the_summary_for_a_pipe_a_terminal_and_a_script() -> None:
    page = summary_page(SUMMARY)
    matches_golden(piped(page), "summary.txt")
    matches_golden(on_screen(page, 90), "summary.terminal.txt")
    matches_golden(piped(page, "json"), "summary.json")
    matches_golden(piped(page, "yaml"), "summary.yaml")


def test_the_document_of_a_summary_is_camel_case_and_its_file_is_not() -> None:
    assert "_" not in "".join(names_in(json.loads(piped(summary_page(SUMMARY), "json"))))
    assert {"total_steps", "wall_s", "to_first_step_s", "write_id"} <= set(names_in(SUMMARY.document()))


def test_the_digest_has_a_line_of_its_own() -> None:
    assert f"\ndigest: {SUMMARY.digest}\n" in piped(summary_page(SUMMARY))


@pytest.mark.parametrize(
    ("trouble", "line"), [("list steps: no answer", "not read back, list steps: no answer"), ("", "none, nothing")]
)
def test_a_digest_that_nobody_could_compute_is_not_said_to_be_that_of_nothing(trouble: str, line: str) -> None:
    summary = structs.replace(SUMMARY, digest=None, digest_trouble=trouble)
    assert f"\ndigest: {line}" in piped(summary_page(summary))


def test_the_rows_of_the_ledger_add_up_to_wall_time_times_ranks() -> None:
    *spent, total = ledger_listing(SUMMARY.ledger).rows
    assert sum(float(row[1]) for row in spent) == pytest.approx(float(total[1])) == pytest.approx(83.4 * 4)
    assert total[2] == "100.0%"


def test_the_live_frame_names_few_nodes_and_draws_many() -> None:
    matches_golden(live_frame(look_of(), Pace(tokens_per_s=12_345.0), EVENTS, width=100).text + "\n", "live.few.txt")
    drawn = live_frame(look_of(300, phase="recovering"), Pace(), EVENTS, width=60).text
    matches_golden(drawn + "\n", "live.many.txt")


def test_a_node_has_the_same_ranks_while_another_one_is_lost() -> None:
    whole = look(holder_pid=1)
    assert whole.snapshot is not None
    first, second, *rest = whole.snapshot.nodes
    left = (first, replace(second, slot=None, condition="lost"), *rest)
    hurt = replace(whole, snapshot=replace(whole.snapshot, nodes=left))
    assert [row[4] for row in node_listing(whole).rows] == ["0..1", "2..3", "-"]
    assert [row[4] for row in node_listing(hurt).rows] == ["0..1", "-", "-"]


def test_the_nodes_of_a_run_that_has_ended_are_released() -> None:
    player = Player()
    player.begin()
    player.join("abc")
    assert [node.condition for node in seen(player.obs).nodes] == ["working", "working", "spare"]
    assert {node.condition for node in seen(player.obs, is_led=False).nodes} == {"released"}
    over = structs.replace(player.obs, outcome="succeeded")
    frame = live_frame(seen(over), Pace(), (), width=100).text
    assert frame.count(" released ") == 3
    assert "heard" not in frame


def test_a_released_node_has_a_sign_of_its_own() -> None:
    drawn = live_frame(look_of(300, phase="succeeded", is_led=False), Pace(), EVENTS, width=60).text
    matches_golden(drawn + "\n", "live.released.txt")


@pytest.mark.parametrize("width", [20, 40, 79])
def test_no_line_of_the_live_frame_is_wider_than_the_terminal(width: int) -> None:
    lines = live_frame(look_of(500), Pace(), EVENTS, width=width).text.splitlines()
    assert max(len(line) for line in lines) < width
    assert len(lines) < 24


def test_the_pace_is_that_of_the_present_attempt() -> None:
    first = paced(Pace(), look_of())
    assert (first.attempt, first.tokens_per_s) == (2, None)
    earlier = Pace(attempt=2, since_us=NOW_US - 2_000_000, tokens=100_000)
    assert paced(earlier, look_of()).tokens_per_s == 10_000


def test_a_pipe_gets_one_line_an_event_whatever_a_program_printed() -> None:
    assert event_line(EVENTS[2]) == (
        "08:01:20.000 ! attempt 1 step 55: WorkerFailed: rank 1 ended: [31mred [0m and more"
    )


def test_a_commit_in_a_pipe_tells_the_latest_loss_and_its_step() -> None:
    vitals = Vitals(attempt=Attempt(1), step=Step(43), loss=2.43119, tokens=0)
    plain = "08:01:10.000   attempt 1 step 41: Committed: checkpoint of step 40 committed (5MiB)"
    assert event_line(EVENTS[1], vitals) == f"{plain}; loss 2.4312 at step 43"
    assert event_line(EVENTS[1], replace(vitals, loss=None)) == plain
    assert event_line(EVENTS[1], replace(vitals, attempt=Attempt(2))) == plain
    assert "loss" not in event_line(EVENTS[2], vitals)


def test_status_of_a_live_run_and_of_one_that_nobody_runs() -> None:
    matches_golden(piped(status_page(look(holder_pid=42), now_us=NOW_US + 5_000_000)), "status.live.txt")
    matches_golden(piped(status_page(look(holder_pid=None), now_us=NOW_US + 5_000_000)), "status.interrupted.txt")
    matches_golden(piped(status_page(look(holder_pid=42), now_us=NOW_US + 5_000_000), "json"), "status.json")


def test_a_run_that_is_not_over_and_that_nobody_runs_is_interrupted() -> None:
    assert state_of(look(holder_pid=None)) == "interrupted"
    assert state_of(look(holder_pid=0)) == "training"


def test_runs_in_each_format() -> None:
    listing = run_listing([look(holder_pid=42)], now_us=NOW_US)
    matches_golden(piped(listing), "runs.txt")
    matches_golden(piped(listing, "wide"), "runs.wide.txt")
    assert piped(listing, "name") == "run/tiny-moe\n"


def test_no_rows_say_so_on_stderr_only() -> None:
    out, err = StringIO(), StringIO()
    Console(out, err, environment={}).show(run_listing([], now_us=NOW_US), "")
    assert (out.getvalue(), err.getvalue().startswith("no runs")) == ("", True)


def test_a_plan_of_few_ranks_has_a_row_each() -> None:
    run = decode_run(NUMPY_RUN.read_bytes())
    matches_golden(piped(plan_page(run, None, is_full=False)), "plan.small.txt")
    matches_golden(piped(plan_page(run, None, is_full=False), "json"), "plan.small.json")


def test_a_plan_of_many_ranks_is_folded_by_what_they_hold() -> None:
    text = NUMPY_RUN.read_text().replace("count: 2", "count: 32").replace("gpus_per_node: 1", "gpus_per_node: 8")
    text = text.replace(
        "  mesh:\n    dp: 2\n", "  model: {ref: scout}\n  mesh: {tp: 8, pp: 2, dp: 16, etp: 1, ep: 16, edp: 8}\n"
    )
    run = decode_run(text)
    scout = named_inventory("scout")
    held = rank_bytes(scout, run.mesh)
    matches_golden(piped(plan_page(run, scout, is_full=False, held=held)), "plan.large.txt")
    assert len(piped(plan_page(run, scout, is_full=True, held=held)).splitlines()) > 256


def test_a_field_is_explained_with_what_lies_below_it() -> None:
    matches_golden(piped(field_page(explain("spec.checkpoint.every"))), "explain.txt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (figures.size(0), "0 B"),
        (figures.size(1023), "1023 B"),
        (figures.size(1024), "1.00 KiB"),
        (figures.size(1_048_575), "1.00 MiB"),
        (figures.size(10 << 30), "10.0 GiB"),
        (figures.rate(None), "-"),
        (figures.seconds(0.0434), "0.043 s"),
        (figures.seconds(59.96), "60.0 s"),
        (figures.seconds(125), "2m05s"),
        (figures.seconds(3_599.6), "1h00m"),
        (figures.seconds(90_000), "1d01h"),
        (figures.seconds(None), "-"),
        (figures.age(-3), "0s"),
        (figures.age(119), "119s"),
        (figures.age(7_260), "2h01m"),
        (figures.since(1_000_000, 4_000_000), "3s"),
        (figures.since(0, 4_000_000), "-"),
        (figures.moment(0), "-"),
        (figures.count(999), "999"),
        (figures.count(12_345), "12.3k"),
        (figures.count(999_499), "999k"),
        (figures.count(999_600), "1M"),
        (figures.percent(1, 0), "-"),
        (figures.ranks([7, 0, 1, 2, 3, 3]), "0-3,7"),
        (figures.ranks([]), ""),
    ],
)
def test_figures_are_rounded_for_the_eye(text: str, expected: str) -> None:
    assert text == expected


def test_a_row_is_one_line_and_steers_no_terminal() -> None:
    assert one_line("a\n\tb \x1b]0;title\x07 c") == "a b ]0;title c"
    assert one_line("plain  text") == "plain  text"
