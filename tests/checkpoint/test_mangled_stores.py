"""Whatever objects lie in a store, under whatever names: who lists, verifies, pins and cleans up ends well or with an
error of ours; and the files of a node's own disk likewise, whatever their headers say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import BehemothError
from behemoth.base.ids import Rank, RunUid, Step, WriteId
from behemoth.checkpoint.commit_log import commits, has_trace, latest, record_sizes, records, reject, rejected_writes
from behemoth.checkpoint.framing import framed, unframed
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.owner import Owner, read_owner, take
from behemoth.checkpoint.pins import lost_pins, pin, pinned_writes
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.signposts import make_due, put_up, signposts, take_down
from behemoth.checkpoint.snapshot_format import file_bytes
from behemoth.checkpoint.verify import verify
from behemoth.checkpoint.verify_store import verify_store
from behemoth.ports import ObjectStore, Part
from behemoth.state.effect import CommitRef
from behemoth.testing.store import MemoryStore, contents
from checkpoint.mangled import EXTREMES, mangled_bytes, mangled_document
from checkpoint.saved_checkpoint import save, small_layout
from checkpoint.snapshots import files_of, formatted, keep, stage_bytes
from checkpoint.test_mangled import bounded

SMALL = plan_rank(small_layout(), Rank(0))


def eventful_store() -> MemoryStore:
    """Every kind of object: commits, a pin, a rejection, a deletion that was cut off, an owner, signposts."""
    store = MemoryStore()
    take(store, Owner.of_run(RunUid("run"), name="run", directory="/run"), url="store")
    refs: list[CommitRef] = []
    for step in (1, 2, 3):
        record = save(store, small_layout(), step=step, write_id=f"a1-{step}")
        assert record is not None
        refs.append(record.ref)
    save(store, small_layout(), step=4, write_id="a1-4", publish=False)
    pin(store, refs[0], reason="good", at_us=0)
    reject(store, refs[2], "damaged")
    put_up(store, make_due(store, Step(1), WriteId("a1-1"), "step-1"))
    return store


EVENTFUL = eventful_store()
KEYS = sorted(contents(EVENTFUL))
READS: tuple[Callable[[ObjectStore], object], ...] = (
    commits,
    latest,
    lambda store: list(records(store)),
    record_sizes,
    lambda store: has_trace(store, ()),
    rejected_writes,
    pinned_writes,
    lost_pins,
    signposts,
    read_owner,
    verify_store,
    lambda store: [verify(store, one, threads=1, deep=True) for one in commits(store)],
    lambda store: execute(
        store, plan_gc(store, drop=[one for one in commits(store) if isinstance(one, CommitRef)][:1])
    ),
    lambda store: execute(store, plan_gc(store, in_flight=())),
    lambda store: take_down(store, signposts(store), [(Step(1), WriteId("a1-1"))]),
)


@st.composite
def odd_keys(draw: st.DrawFn) -> str:
    """Like one that is there, but for a character or a segment."""
    key = draw(st.sampled_from(KEYS))
    segments = key.split("/")
    at = draw(st.integers(0, len(segments) - 1))
    odd = st.sampled_from(["x", "", "0", "000000000", "a1-1", "000000001-a1-1.json", "..", "commits", "é", "x" * 300])
    inside = st.tuples(st.integers(0, 20), st.sampled_from("0-./aé ")).map(
        lambda one: segments[at][: one[0]] + one[1] + segments[at][one[0] + 1 :]
    )
    segments[at] = draw(odd | inside)
    return "/".join(segments)


@settings(max_examples=40)
@given(data=st.data())
def test_whatever_lies_in_a_store_is_listed_verified_and_cleaned_up_or_told(data: st.DataObject) -> None:
    store = EVENTFUL.copy()
    for _ in range(data.draw(st.integers(1, 3))):
        other = contents(EVENTFUL)[data.draw(st.sampled_from(KEYS))]
        body = data.draw(st.just(other) | mangled_bytes(other) | st.just(b""))
        key = data.draw(st.sampled_from(KEYS) | odd_keys())
        with suppress(BehemothError):  # a name that no store takes
            store.delete([key])
            store.create(key, body)
    for read in READS:
        with bounded(), suppress(BehemothError):
            read(store)


@settings(max_examples=40)
@given(data=st.data())
def test_whatever_a_header_on_a_nodes_own_disk_says_the_next_copy_is_made_or_refused(data: st.DataObject) -> None:
    store, arena = MemoryStore(), formatted(SMALL)
    for step in (1, 2):
        stage_bytes(arena, SMALL, f"a1-{step}", step)
        keep(store, arena, SMALL)
    files = files_of(store, SMALL)
    key = data.draw(st.sampled_from(files.keys))
    page = contents(store)[key][:4096].rstrip(b"\0")
    document = msgspec.json.decode(unframed(page, name="snapshot"))
    if data.draw(st.booleans()):
        header = data.draw(mangled_document(document, encode=msgspec.json.encode))
    else:
        header = msgspec.json.encode({**document, data.draw(st.sampled_from(sorted(document))): data.draw(EXTREMES)})
    part = Part(offset_bytes=0, buffers=(framed(header).ljust(4096, b"\0")[:4096],))
    store.write_parts(key, size_bytes=file_bytes(SMALL), parts=(part,))
    stage_bytes(arena, SMALL, "a1-3", 3)
    for look in (
        lambda: files.find(WriteId("a1-2"), Step(2)).crcs(),
        lambda: files.holds(WriteId("a1-1"), Step(1)),
        files.new_bytes,
        lambda: keep(store, arena, SMALL),
        lambda: files.drop(WriteId("a1-3")),
    ):
        with bounded(), suppress(BehemothError):
            look()


def test_the_store_of_this_test_has_an_object_of_every_kind() -> None:
    folders = {key.split("/")[0] for key in KEYS}
    assert folders >= {"commits", "steps", "pins", "rejected", "owner", "signposts", "step-1"}
