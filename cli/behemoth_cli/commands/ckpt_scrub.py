"""`behemoth ckpt scrub`: reads checkpoints back again and again, slowly, to find damage while older ones are there."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from datetime import timedelta
from typing import Annotated

import typer

from behemoth.base.errors import Invalid
from behemoth.base.units import parse_duration
from behemoth.checkpoint.pacing import PacedStore, Pacer
from behemoth.checkpoint.verify_store import verify_store
from behemoth.storage.open import open_store
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.commands.checking import checked, told
from behemoth_cli.commands.rates import rate_of, stopped_by_interrupt
from behemoth_cli.commands.selection import Threads, Where, chosen
from behemoth_cli.context import Checkpoints, Context, chosen_format, find_checkpoints
from behemoth_cli.exits import Exit
from behemoth_cli.out.console import Format
from behemoth_cli.views import figures


def scrub(
    ctx: typer.Context,
    where: Where,
    rate: Annotated[str, typer.Option("--rate", metavar="SIZE", help="Bytes to read in a second.")] = "200MiB",
    every: Annotated[
        str, typer.Option("--every", metavar="TIME", help="Begin anew so long after the last begin, as 6h; else once.")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="Every checkpoint once; so it is without --every.")] = False,
    threads: Threads = 2,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> int:
    """Read every byte of every checkpoint back at a limited rate, on a schedule.

    A round that finds damage is the last one: it names the damage and ends with code 3, for whoever watches. Nothing is
    written or remembered; may be killed at any time. Ctrl-C ends it with code 130.
    """
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    bytes_per_s = rate_of(rate, without="it is 200MiB")
    interval = _interval(every, once)
    place = find_checkpoints(where)
    with stopped_by_interrupt() as stop:
        context.console.note(f"store {place.url}, at most {figures.rate(bytes_per_s)}")
        while True:
            began_s = time.monotonic()
            verdict = _round(context, place, bytes_per_s, stop, threads, form)
            if interval is None or verdict is not Exit.OK:
                return verdict
            left_s = max(0.0, began_s + interval.total_seconds() - time.monotonic())
            context.console.note(f"the next round begins in {figures.seconds(left_s)}")
            _pause(stop, left_s)


def _pause(stop: threading.Event, wait_s: float) -> None:
    stop.wait(wait_s)


def _interval(every: str, once: bool) -> timedelta | None:
    if every and once:
        raise Invalid("option --once: expected it without --every, got both", code="usage")
    if not every:
        return None
    interval = parse_duration(every, name="option --every")
    if interval < timedelta(seconds=1):
        raise Invalid(f"option --every: expected at least 1s, got {every!r}", code="out-of-range")
    return interval


def _round(
    context: Context, place: Checkpoints, bytes_per_s: int, stop: threading.Event, threads: int, form: Format
) -> Exit:
    """What is there now, newest first: that is what a restore would want. Raises NotFound where nothing is: a store
    that is not mounted is not whole."""
    with closing(open_store(place.url)) as store:
        paced = PacedStore(store, Pacer(bytes_per_s=bytes_per_s, stop=stop))
        of_store = verify_store(store)
        found = chosen(store, place, None, may_be_none=bool(of_store))
        reports = checked(paced, list(reversed(found)), context.console, threads=threads, deep=True)
    return told(reports, of_store, context.console, place, form)
