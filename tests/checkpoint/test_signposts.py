"""Folders by which other programs know their checkpoints: what stands when, and what gc takes with what."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Conflict
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import BadCommit, commits
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.paths import commit_key
from behemoth.checkpoint.signposts import make_due, put_up, require_free, signposts, stands
from behemoth.checkpoint.verify_store import verify_store
from behemoth.ports import ObjectStore, SavesTo
from behemoth.state.effect import CommitRef
from behemoth.testing.faults import Crash, FaultyStore, every_death
from behemoth.testing.store import MemoryStore
from checkpoint.saved_checkpoint import save, small_layout


def saved(*steps: int) -> MemoryStore:
    """Each committed, and its folder put up."""
    store = MemoryStore()
    for step in steps:
        post(store, step)
    return store


def post(store: SavesTo, step: int, *, write_id: str | None = None) -> None:
    name = write_id or f"a1-{step}"
    due = make_due(store, Step(step), WriteId(name), f"step-{step}")
    save(store, small_layout(), step=step, write_id=name)
    put_up(store, due)


def refs(store: ObjectStore) -> list[CommitRef]:
    return [one for one in commits(store) if not isinstance(one, BadCommit)]


def folders(store: ObjectStore) -> set[str]:
    return {info.key for info in store.list("") if info.key.startswith("step-")}


def test_a_write_is_due_before_its_commit_and_set_after_its_file() -> None:
    store = MemoryStore()
    due = make_due(store, Step(7), WriteId("a1-7"), "step-7")
    assert [(one.folder, one.was_set) for one in signposts(store)] == [("step-7", False)]
    assert not stands(store, due)
    put_up(store, due)
    put_up(store, due)
    (found,) = signposts(store)
    assert (found.write, found.folder, found.was_set) == ((7, "a1-7"), "step-7", True)
    assert [info.key for info in store.list("signposts")] == ["signposts/set/000000007-a1-7/step-7"]
    assert folders(store) == {"step-7/.metadata"}


def test_a_file_of_something_else_is_never_taken_for_a_signpost() -> None:
    store = MemoryStore()
    require_free(store, "step-7")
    store.create("step-7/.metadata", b"\x80\x02}q\x00.")
    with pytest.raises(Conflict, match=r"step-7/\.metadata of 6 bytes") as caught:
        require_free(store, "step-7")
    assert caught.value.code == "signpost-taken"
    with pytest.raises(Conflict):
        put_up(store, make_due(store, Step(7), WriteId("a1-7"), "step-7"))
    put_up(store, make_due(store, Step(8), WriteId("a1-8"), "step-8"))
    require_free(store, "step-8")
    store.create("step-9/.metadata", b"")
    require_free(store, "step-9")
    put_up(store, make_due(store, Step(9), WriteId("a1-9"), "step-9"))
    assert [one.was_set for one in signposts(store)] == [False, True, True]


def test_gc_takes_folder_and_records_with_a_commit() -> None:
    store = saved(10, 20, 30)
    execute(store, plan_gc(store, drop=refs(store)[:1]))
    assert folders(store) == {"step-20/.metadata", "step-30/.metadata"}
    assert [one.step for one in signposts(store)] == [20, 30]


def test_gc_keeps_the_folder_that_a_write_which_stays_has_too() -> None:
    store = saved(10, 20, 30)
    due = make_due(store, Step(10), WriteId("a2-10"), "step-20")  # another write that gave its folder the same name
    put_up(store, due)
    execute(store, plan_gc(store, in_flight=()))
    assert folders(store) == {"step-10/.metadata", "step-20/.metadata", "step-30/.metadata"}
    assert [one.write_id for one in signposts(store)] == ["a1-10", "a1-20", "a1-30"]


def test_gc_takes_what_has_no_commit_only_where_nobody_writes() -> None:
    store = saved(10, 20)
    make_due(store, Step(30), WriteId("a1-30"), "step-30")
    make_due(store, Step(40), WriteId("a1-40"), "step-40")
    execute(store, plan_gc(store))
    assert [one.step for one in signposts(store)] == [10, 20, 30, 40]
    execute(store, plan_gc(store, in_flight={WriteId("a1-30")}))
    assert [one.step for one in signposts(store)] == [10, 20, 30]


def test_gc_keeps_the_folder_of_a_step_whose_commit_cannot_be_read() -> None:
    store = saved(10, 20, 30)
    store.delete([commit_key(Step(20))])
    store.create(commit_key(Step(20)), b"written by a newer release, perhaps")
    execute(store, plan_gc(store, in_flight=()))
    assert folders(store) == {"step-10/.metadata", "step-20/.metadata", "step-30/.metadata"}
    assert [one.step for one in signposts(store)] == [10, 20, 30]


def test_no_folder_stands_without_its_commit_wherever_gc_dies() -> None:
    def clean(store: ObjectStore) -> None:
        execute(store, plan_gc(store, drop=refs(store)[:1]))

    counting = FaultyStore(saved(10, 20, 30))
    clean(counting)
    for death in every_death(counting.num_writes):
        inner = saved(10, 20, 30)
        with pytest.raises(Crash):
            clean(FaultyStore(inner, death))
        steps = {one.step for one in refs(inner)}
        assert folders(inner) <= {f"step-{step}/.metadata" for step in steps}
        execute(inner, plan_gc(inner, drop=[one for one in refs(inner) if one.step == 10], in_flight=()))
        assert folders(inner) == {"step-20/.metadata", "step-30/.metadata"}
        assert [one.step for one in signposts(inner)] == [20, 30]


def test_verify_knows_the_records_and_names_what_is_none() -> None:
    store = saved(10)
    assert verify_store(store) == ()
    store.create("signposts/set/10/step-10", b"")
    store.create("signposts/due/000000010-a1-10/step-10", b"x")
    found = [(problem.kind, problem.object_key) for problem in verify_store(store)]
    assert found == [("extra", "signposts/due/000000010-a1-10/step-10"), ("extra", "signposts/set/10/step-10")]
