"""In which order threads write a rank's spans."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.ids import Rank
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import Span, plan_rank
from behemoth.checkpoint.turns import BATCH_BYTES, BATCH_SPANS, SpanBatch, Turns
from behemoth.spec.mesh import Mesh

MIB = 1 << 20


def spans_of(*arrays_mib: int) -> tuple[Span, ...]:
    """Arrays of so many MiB, in chunks of 8 MiB and less."""
    specs = tuple(
        ArraySpec(name=f"w{number}", dtype="uint8", shape=(mib, MIB)) for number, mib in enumerate(arrays_mib)
    )
    return plan_rank(Layout(mesh=Mesh(), arrays=specs), Rank(0)).spans


def taken(turns: Turns[Span]) -> SpanBatch[Span]:
    batch = turns.take()
    assert batch is not None
    return batch


def test_a_thread_takes_an_array_that_nobody_writes() -> None:
    turns = Turns(spans_of(64, 64, 64))
    first, second = taken(turns), taken(turns)
    assert (first.array, second.array) == (0, 1)
    turns.done(first)
    assert taken(turns).array == 0


def test_a_thread_joins_another_when_nothing_else_is_left() -> None:
    turns = Turns(spans_of(64))
    first, second = taken(turns), taken(turns)
    assert (first.number, second.number) == (0, 1)
    assert turns.take() is None


def test_an_array_is_done_with_its_last_batch_in_any_order() -> None:
    turns = Turns(spans_of(64))
    first, second = taken(turns), taken(turns)
    assert [turns.done(second), turns.done(first)] == [False, True]


def test_after_a_failure_nothing_is_given_out() -> None:
    turns = Turns(spans_of(64, 64))
    taken(turns)
    turns.stop()
    assert turns.take() is None


@given(sizes=st.lists(st.integers(1, 80), min_size=1, max_size=5), num_threads=st.integers(1, 4), data=st.data())
def test_every_span_is_given_out_once_and_every_array_is_done_once(
    sizes: list[int], num_threads: int, data: st.DataObject
) -> None:
    spans = spans_of(*sizes)
    turns = Turns(spans)
    busy: list[SpanBatch[Span]] = []
    batches: dict[int, SpanBatch[Span]] = {}
    done: list[int] = []
    while True:
        batch = turns.take() if len(busy) < num_threads else None
        if batch is not None:
            busy.append(batch)
            batches[batch.number] = batch
            continue
        if not busy:
            break
        ended = busy.pop(data.draw(st.integers(0, len(busy) - 1)))
        if turns.done(ended):
            done.append(ended.array)
    in_order = [batches[number].spans for number in range(turns.num_batches)]
    assert [span for batch in in_order for span in batch] == list(spans)
    assert all(len(batch) <= BATCH_SPANS and sum(span.length for span in batch) <= BATCH_BYTES for batch in in_order)
    assert sorted(done) == list(range(len(sizes)))
