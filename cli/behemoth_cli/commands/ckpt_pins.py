"""`behemoth ckpt pin` and `unpin`: the operator's word that a checkpoint stays."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Annotated

import typer

from behemoth.base.errors import NotFound
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint import pins
from behemoth.storage.open import open_store
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.commands.selection import Where, name_of, pins_of, standing
from behemoth_cli.context import Context, chosen_format, find_checkpoints
from behemoth_cli.views.care import pin_page

StepToPin = Annotated[int, typer.Option("--step", metavar="N", min=0, help="The checkpoint of this step.")]
Output = Annotated[str, output_option("json", "yaml")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]


def pin(
    ctx: typer.Context,
    where: Where,
    step: StepToPin,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for those who find it.")] = "",
    dry_run: DryRun = False,
    output: Output = "",
) -> None:
    """Keep a checkpoint until it is unpinned: no retention, no gc deletes it.

    May be used while the run goes on. Fails when the checkpoint is deleted at the same moment.
    """
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    place = find_checkpoints(where)
    context.console.note(f"store {place.url}")
    with closing(open_store(place.url)) as store:
        ref = standing(store, place, step)
        write = ref.step, ref.write_id
        if dry_run:
            is_new = write not in pins_of(store)
        else:
            is_new = pins.pin(store, ref, reason=reason, at_us=time.time_ns() // 1000)
    context.console.show(pin_page([write], is_pinned=True, is_new=is_new, is_dry_run=dry_run), form)
    if reason and not is_new:
        context.console.note("hint: the reason that it was pinned for stays; unpin it first to give another")


def unpin(ctx: typer.Context, where: Where, step: StepToPin, dry_run: DryRun = False, output: Output = "") -> None:
    """Leave a pinned checkpoint to retention again."""
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    place = find_checkpoints(where)
    context.console.note(f"store {place.url}")
    with closing(open_store(place.url)) as store:
        pinned = pins_of(store)
        writes = [write for write in pinned if write[0] == step]
        if not writes:
            steps = ", ".join(str(each) for each in sorted({each for each, _ in pinned})[:8])
            raise NotFound(
                f"{name_of(place)}: expected a pinned checkpoint of step {step}, got none",
                hint=f"pinned are step {steps}" if steps else "nothing is pinned there",
                code="pin-not-found",
            )
        for _, write_id in () if dry_run else writes:
            pins.unpin(store, Step(step), WriteId(write_id))
    context.console.show(pin_page(writes, is_pinned=False, is_new=True, is_dry_run=dry_run), form)
