"""`behemoth ckpt`: looks at checkpoints. Nothing here writes; verbs that do, and long ones, have files of their own."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Annotated

import typer

from behemoth.checkpoint.reader import digest
from behemoth.storage.open import open_store
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.commands.ckpt_diff import diff
from behemoth_cli.commands.ckpt_drain import drain
from behemoth_cli.commands.ckpt_export import export_checkpoint
from behemoth_cli.commands.ckpt_gc import gc
from behemoth_cli.commands.ckpt_import import import_checkpoint
from behemoth_cli.commands.ckpt_pins import pin, unpin
from behemoth_cli.commands.ckpt_rehearse import rehearse_restore
from behemoth_cli.commands.ckpt_reshard import reshard_checkpoint
from behemoth_cli.commands.ckpt_scrub import scrub
from behemoth_cli.commands.ckpt_verify import verify_checkpoints
from behemoth_cli.commands.selection import Step, Where, all_found, intact, opened, pins_of, unless_deleted
from behemoth_cli.context import Checkpoints, Context, chosen_format, find_checkpoints
from behemoth_cli.out.table import Listing
from behemoth_cli.views.checkpoints import checkpoint_listing, checkpoint_page

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback()
def ckpt() -> None:
    """Look at checkpoints, prove and compare them, say which are kept, take them elsewhere and back."""


@app.command("list")
def list_checkpoints(
    ctx: typer.Context,
    where: Where,
    output: Annotated[str, output_option("wide", "json", "yaml", "name")] = "",
) -> None:
    """One row for each checkpoint. Reads records only: `ok` does not mean that every byte was looked at."""
    form = chosen_format(output, "wide", "json", "yaml", "name")
    context: Context = ctx.obj
    context.console.show(listing_of(find_checkpoints(where)), form)


@app.command()
def show(
    ctx: typer.Context,
    where: Where,
    step: Step = None,
    with_digest: Annotated[
        bool, typer.Option("--digest", help="Read every array and compute the digest of the state.")
    ] = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> None:
    """Where a checkpoint comes from, and its arrays; the newest one without --step."""
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    place = find_checkpoints(where)
    with closing(open_store(place.url)) as store:
        ref = intact(store, place, step, note=context.console.note)
        commit = opened(store, ref)
        pinned = pins_of(store).get((ref.step, ref.write_id))
        with unless_deleted(store, ref):
            text = f"sha256:{digest(store, commit)}" if with_digest else None
    context.console.show(checkpoint_page(commit, text, pin=pinned), form)


def listing_of(place: Checkpoints) -> Listing:
    """All checkpoints of a place, rejected ones among them."""
    with closing(open_store(place.url)) as store:
        found = all_found(store)
    return checkpoint_listing(found, now_us=time.time_ns() // 1000)


for verb in (pin, unpin, gc, diff, scrub, drain):
    app.command()(verb)
app.command("verify")(verify_checkpoints)
app.command("export")(export_checkpoint)
app.command("import")(import_checkpoint)
app.command("reshard")(reshard_checkpoint)
app.command("rehearse")(rehearse_restore)
