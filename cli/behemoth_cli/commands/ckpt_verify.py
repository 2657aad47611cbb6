"""`behemoth ckpt verify`: reads checkpoints back, in batches, here or on a Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from behemoth.base.errors import Invalid
from behemoth.checkpoint.verify_store import verify_store
from behemoth.storage.open import located, open_store
from behemoth_cli.commands.batching import Address, Anew, Batching, On, State, batching
from behemoth_cli.commands.candidates import output_option
from behemoth_cli.commands.checking import checked, told
from behemoth_cli.commands.selection import Step, Threads, Where, chosen
from behemoth_cli.context import Context, chosen_format, find_checkpoints

if TYPE_CHECKING:
    from behemoth.checkpoint.chunk_check import Found, Shard, SlotRange
    from behemoth.checkpoint.commit_record import CommitRecord
    from behemoth.checkpoint.verify import Spread


def verify_checkpoints(
    ctx: typer.Context,
    where: Where,
    step: Step = None,
    fast: Annotated[bool, typer.Option("--fast", help="Check metadata and sizes; read nothing of the arrays.")] = False,
    on: On = "threads",
    address: Address = "",
    threads: Threads = 4,
    state: State = "",
    anew: Anew = False,
    output: Annotated[str, output_option("json", "yaml")] = "",
) -> int:
    """Read checkpoints back, every byte; all of them without --step.

    Names tensor, chunk and file of each damage, and files that have no business there, and ends with code 3 then.
    Repairs nothing. Killed while it read a large checkpoint, the same command goes on where it stopped.
    """
    form = chosen_format(output, "json", "yaml")
    context: Context = ctx.obj
    if fast:
        _refuse_idle({"--on ray": on == "ray", "--state": bool(state), "--anew": anew})
    options = batching(context.console, on=on, address=address, state=state, anew=anew, threads=threads)
    with options as batches:
        place = find_checkpoints(where)
        with closing(open_store(place.url)) as store:
            of_store = verify_store(store)
            # Damage is told even where nothing was committed.
            wanted = chosen(store, place, step, may_be_none=bool(of_store) and step is None)
            url = located(place.url, store)
            spread = partial(_spread, batches, url)
            reports = checked(store, wanted, context.console, threads=threads, deep=not fast, spread=spread)
    return told(reports, of_store, context.console, place, form)


def _refuse_idle(are_given: dict[str, bool]) -> None:
    """Raises Invalid for options of batches, which there are none of where no chunk is read."""
    for name in (name for name, is_given in are_given.items() if is_given):
        raise Invalid(
            f"option {name}: expected it without --fast, got both",
            hint="--fast reads no chunks: this process does it at once, and keeps no record; leave one of them out",
            code="option-without-effect",
        )


def _spread(batches: Batching, url: str, progress: Callable[[int, int], None]) -> Spread:
    """Checks the chunks of a checkpoint in batches; `url` leads there from every node."""

    def spread(record: CommitRecord, shards: Sequence[Shard], spans: Sequence[SlotRange]) -> Iterator[Found]:
        from behemoth.app.batches.jobs import encode_job
        from behemoth.app.batches.verify_job import check_in_batches, verify_job

        job = verify_job(url, record.ref)
        num_bytes = sum(span.num_bytes for span in spans)
        with batches.record("verify", encode_job(job), num_bytes=num_bytes) as kept:
            yield from check_in_batches(batches.executor(), job, shards, spans, kept, progress=progress)

    return spread
