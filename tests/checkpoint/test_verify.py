"""Every kind of damage is found and named; what is whole passes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from behemoth.base.errors import BehemothError, Corrupt, NotFound, Timeout, Unavailable
from behemoth.checkpoint.commit_log import BadCommit, commits
from behemoth.checkpoint.pins import pin
from behemoth.checkpoint.problem import Problem
from behemoth.checkpoint.verify import Verification, require_committed, require_objects, verify
from behemoth.checkpoint.verify_store import verify_store
from behemoth.ports import Into, ObjectInfo, ObjectStore
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from behemoth.testing.store import MemoryStore
from checkpoint.saved_checkpoint import big_layout, save, small_layout
from checkpoint.unread_store import BAD_PLACE, DENIED, REFUSED, Unread

SMALL = "steps/000000010-a1-1"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path)
    save(store, small_layout(), step=10, write_id="a1-1")
    return store


def check(store: ObjectStore, *, deep: bool = True, threads: int = 1) -> Verification:
    (commit,) = commits(store)
    return verify(store, commit, threads=threads, deep=deep)


def only(report: Verification) -> Problem:
    (problem,) = report.problems
    return problem


def flip(root: str, key: str, bit: int) -> None:
    path = Path(root, key)
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("deep", [True, False])
def test_a_whole_checkpoint_passes(store: LocalStore, deep: bool) -> None:
    report = check(store, deep=deep, threads=3)
    assert report.problems == ()
    assert report.is_intact
    assert report.num_objects == len([*store.list(SMALL), "the commit"])
    assert (report.num_chunks >= 4, report.num_bytes > 0) == (deep, deep)


@pytest.mark.parametrize("prefix", ["steps", "commits"])
def test_a_flipped_bit_anywhere_in_any_file_is_found_and_its_file_named(store: LocalStore, prefix: str) -> None:
    keys = [info.key for info in store.list(prefix)]
    assert keys
    for key in keys:
        size_bytes = Path(store.root, key).stat().st_size
        # Every byte of arrays; metadata is one CRC each, so that every eleventh byte tells as much.
        for byte in range(0, size_bytes, 1 if "/c" in key else 11):
            bit = 8 * byte + byte % 8
            flip(store.root, key, bit)
            assert key in {problem.object_key for problem in check(store).problems}, f"bit {bit} of {key}"
            flip(store.root, key, bit)
    assert check(store).is_intact


def test_a_flipped_bit_of_data_names_tensor_chunk_file_and_range(store: LocalStore) -> None:
    flip(store.root, f"{SMALL}/optim/m/c/0/0", 77)
    problem = only(check(store))
    assert (problem.kind, problem.array, problem.chunk) == ("chunk", "optim/m", 0)
    assert problem.object_key == f"{SMALL}/optim/m/c/0/0"
    assert (problem.offset_bytes, problem.length_bytes) == (0, 88)
    assert "'optim/m', chunk 0: stored CRC-32C" in problem.message


def test_a_bit_in_the_gap_of_a_large_chunk_and_in_a_later_chunk_is_found(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    save(store, big_layout(), step=10, write_id="a1-1")
    report = check(store, threads=2)
    assert report.is_intact
    assert report.num_chunks >= 3
    key = f"{SMALL}/model/big/c/0/0"
    stride = (Path(tmp_path, key).stat().st_size - 4 - 16 * report.num_chunks) // report.num_chunks
    flip(store.root, key, 8 * (2 * stride - 1))
    flip(store.root, key, 8 * (2 * stride + 5))
    gap, chunk = check(store, threads=2).problems
    assert (gap.kind, gap.chunk, gap.offset_bytes) == ("gap", 1, 2 * stride - 1)
    assert (chunk.kind, chunk.chunk, chunk.offset_bytes) == ("chunk", 2, 2 * stride)


def test_a_missing_shard_is_named(store: LocalStore) -> None:
    store.delete([f"{SMALL}/model/w/c/0/0"])
    problem = only(check(store))
    assert (problem.kind, problem.array) == ("missing", "model/w")


def test_an_all_zero_shard_is_found_and_said_to_be_zero(store: LocalStore) -> None:
    path = Path(store.root, SMALL, "model/w/c/0/0")
    path.write_bytes(bytes(path.stat().st_size))
    problems = check(store).problems
    assert {problem.array for problem in problems} == {"model/w"}
    assert {problem.kind for problem in problems} == {"chunk", "shard-index"}
    assert "all zero" in problems[0].message


@pytest.mark.parametrize("deep", [True, False])
def test_a_truncated_and_a_longer_file_are_found(store: LocalStore, deep: bool) -> None:
    path = Path(store.root, SMALL, "optim/m/c/0/0")
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    problem = only(check(store, deep=deep))
    assert (problem.kind, problem.array, problem.chunk, problem.offset_bytes) == ("size", "optim/m", 0, 50)
    assert f"expected {len(whole)} bytes, got 50 bytes" in problem.message
    path.write_bytes(whole + b"\0")
    problem = only(check(store, deep=deep))
    assert (problem.kind, problem.offset_bytes, problem.length_bytes) == ("size", len(whole), 1)


def test_an_extra_file_is_reported(store: LocalStore) -> None:
    store.create(f"{SMALL}/model/w/notes.txt", b"hello")
    problem = only(check(store))
    assert (problem.kind, problem.object_key) == ("extra", f"{SMALL}/model/w/notes.txt")


def test_a_whole_chunk_of_another_checkpoint_is_found(store: LocalStore) -> None:
    save(store, small_layout(), step=20, write_id="a1-2")
    stale = Path(store.root, "steps/000000020-a1-2/model/w/c/0/0").read_bytes()
    Path(store.root, SMALL, "model/w/c/0/0").write_bytes(stale)
    (commit, _) = commits(store)
    problem = only(verify(store, commit, threads=1, deep=True))
    assert (problem.kind, problem.array) == ("content", "model/w")
    assert isinstance(commit, CommitRef)
    with pytest.raises(Corrupt, match=r"file .*model/w/c/0/0: array 'model/w': expected CRC-32C"):
        require_committed(store, commit, threads=1)


def test_a_check_that_is_not_deep_reads_metadata_and_no_array() -> None:
    store = LeavingStore()
    save(store, replace(small_layout(), sharding="box"), step=10, write_id="a1-1")
    (commit,) = commits(store)
    assert isinstance(commit, CommitRef)
    store.read_keys.clear()
    report = verify(store, commit, threads=3, deep=False)
    assert (report.is_intact, report.num_chunks, report.num_bytes) == (True, 0, 0)
    metadata = [info.key for info in store.list(SMALL) if info.key.endswith(("zarr.json", "index"))]
    assert sorted(store.read_keys) == sorted(["commits/000000010.json", *metadata])
    assert report.num_objects == len(list(store.list(SMALL))) + 1


def test_an_object_of_several_from_another_checkpoint_is_told_with_the_folder_of_its_array(tmp_path: Path) -> None:
    store, layout = LocalStore(tmp_path), replace(small_layout(), sharding="box")
    for step, write_id in ((10, "a1-1"), (20, "a1-2")):
        save(store, layout, step=step, write_id=write_id)
    stale = Path(store.root, "steps/000000020-a1-2/model/w/c/0/1").read_bytes()
    Path(store.root, SMALL, "model/w/c/0/1").write_bytes(stale)
    problem = only(verify(store, commits(store)[0], threads=1, deep=True))
    assert (problem.kind, problem.array, problem.object_key) == ("content", "model/w", f"{SMALL}/model/w")


def test_whoever_requires_a_whole_checkpoint_is_told_the_first_damage_and_how_many_more_there_are(
    store: LocalStore,
) -> None:
    (commit,) = commits(store)
    assert not isinstance(commit, BadCommit)
    require_objects(store, commit, threads=1)
    require_committed(store, commit, threads=1)
    missing = f"file {SMALL}/model/w/c/0/0: array 'model/w': expected an object of .* bytes, got none"
    store.delete([f"{SMALL}/model/w/c/0/0"])
    for require in (require_objects, require_committed):
        with pytest.raises(Corrupt, match=f"{missing}$") as caught:
            require(store, commit, threads=1)
        assert caught.value.code == "checkpoint-damaged"
    store.create(f"{SMALL}/notes.txt", b"hello")
    flip(store.root, f"{SMALL}/optim/m/zarr.json", 3)
    for require in (require_objects, require_committed):
        with pytest.raises(Corrupt, match=rf"{missing} \(and 2 more\)$"):
            require(store, commit, threads=1)
    flip(store.root, f"{SMALL}/model/norm/zarr.json", 3)
    with pytest.raises(Corrupt, match=rf"^file {SMALL}/model/norm/zarr.json: expected CRC-32C"):
        require_committed(store, commit, threads=1)


def test_a_truncated_commit_record_is_reported(store: LocalStore) -> None:
    path = Path(store.root, "commits/000000010.json")
    path.write_bytes(path.read_bytes()[:100])
    problem = only(check(store))
    assert (problem.kind, problem.object_key) == ("commit-record", "commits/000000010.json")


def test_a_record_that_changes_after_it_was_listed_is_found(store: LocalStore) -> None:
    (commit,) = commits(store)
    flip(store.root, "commits/000000010.json", 300)
    assert only(verify(store, commit, threads=1, deep=False)).kind == "commit-record"
    store.delete(["commits/000000010.json"])
    assert only(verify(store, commit, threads=1, deep=False)).kind == "missing"


def test_a_damaged_index_is_told_and_ends_the_check(store: LocalStore) -> None:
    flip(store.root, f"{SMALL}/index", 500)
    report = check(store)
    assert only(report).kind == "index"
    assert report.num_objects == len([*store.list(SMALL), "the commit"])
    store.delete([f"{SMALL}/index"])
    assert only(check(store)).kind == "missing"


def test_several_damages_are_all_reported(store: LocalStore) -> None:
    flip(store.root, f"{SMALL}/optim/m/c/0/0", 3)
    flip(store.root, f"{SMALL}/model/norm/zarr.json", 3)
    store.delete([f"{SMALL}/state/count/c"])
    found = {(problem.kind, problem.object_key) for problem in check(store, threads=2).problems}
    assert found == {
        ("chunk", f"{SMALL}/optim/m/c/0/0"),
        ("metadata", f"{SMALL}/model/norm/zarr.json"),
        ("missing", f"{SMALL}/state/count/c"),
    }


def test_progress_is_told_up_to_the_total(store: LocalStore) -> None:
    told: list[tuple[int, int]] = []
    (commit,) = commits(store)
    report = verify(store, commit, threads=2, deep=True, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (report.num_bytes, report.num_bytes)
    assert told == sorted(told)


class LeavingStore(MemoryStore):
    """Away from its read or listing number `stays` on."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0
        self.read_keys: list[str] = []
        self.stays: int | None = None
        self.error: BehemothError = Unavailable("no whole answer from the store")

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        self._count()
        self.read_keys.append(key)
        super().read_into(key, offset_bytes=offset_bytes, into=into)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._count()
        return super().list(prefix)

    def _count(self) -> None:
        if self.num_reads == self.stays:
            raise self.error
        self.num_reads += 1


@pytest.mark.parametrize(
    "error",
    [Unavailable("no whole answer"), Unavailable("too many open files", code="too-many-files"), Timeout("no answer")],
    ids=["away", "too-many-files", "late"],
)
@pytest.mark.parametrize("deep", [True, False])
def test_a_store_that_goes_away_at_any_read_is_no_damage_and_is_asked_no_further(
    deep: bool, error: BehemothError
) -> None:
    store = LeavingStore()
    save(store, small_layout(), step=10, write_id="a1-1")
    (commit,) = commits(store)
    assert not isinstance(commit, BadCommit)
    pin(store, commit, reason="kept", at_us=0)
    store.num_reads, store.error = 0, error
    assert not verify_store(store)
    assert verify(store, commit, threads=1, deep=deep).is_intact
    for stays in range(store.num_reads):
        store.num_reads, store.stays = 0, stays
        with pytest.raises(type(error), match=error.message):
            [verify_store(store), verify(store, commit, threads=1, deep=deep)]
        assert store.num_reads == stays


@pytest.mark.parametrize("error", [DENIED, BAD_PLACE], ids=["denied", "bad place"])
def test_a_folder_that_cannot_be_listed_is_a_problem_of_its_checkpoint(error: BehemothError) -> None:
    class Unlisted(MemoryStore):
        is_whole = True

        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            if prefix == SMALL and not self.is_whole:
                raise error
            return super().list(prefix)

    store = Unlisted()
    save(store, small_layout(), step=10, write_id="a1-1")
    store.is_whole = False
    problem = only(check(store))
    assert (problem.kind, problem.object_key, problem.message) == ("unreadable", SMALL, error.message)


def unread_at(name: str, error: BehemothError) -> tuple[Unread, CommitRef]:
    """A whole checkpoint of which one object cannot be read."""
    inner = MemoryStore()
    record = save(inner, small_layout(), step=10, write_id="a1-1")
    assert record is not None
    return Unread(inner, {f"{SMALL}/{name}": error}), record.ref


@pytest.mark.parametrize("error", [DENIED, BAD_PLACE, REFUSED], ids=["denied", "bad place", "refused"])
@pytest.mark.parametrize("name", ["index", "model/w/zarr.json"])
def test_metadata_that_the_store_does_not_give_are_unreadable_and_not_damaged(name: str, error: BehemothError) -> None:
    store, _ = unread_at(name, error)
    problem = only(check(store, deep=False))
    assert (problem.kind, problem.object_key, problem.message) == ("unreadable", f"{SMALL}/{name}", error.message)


@pytest.mark.parametrize("error", [DENIED, BAD_PLACE, REFUSED], ids=["denied", "bad place", "refused"])
def test_whoever_requires_a_whole_checkpoint_is_told_what_could_not_be_read_and_that_it_may_be_whole(
    error: BehemothError,
) -> None:
    for name, requires in (
        ("model/w/zarr.json", (require_objects, require_committed)),
        ("model/w/c/0/0", (require_committed,)),
    ):
        store, ref = unread_at(name, error)
        for require in requires:
            with pytest.raises(Unavailable, match=f"^file {SMALL}/{name}: {error.message}") as caught:
                require(store, ref, threads=1)
            assert caught.value.code == "checkpoint-unreadable"
    store, ref = unread_at("index", error)
    with pytest.raises(type(error), match=f"^{error.message}$"):
        require_objects(store, ref, threads=1)


def test_damage_is_told_before_what_could_not_be_read() -> None:
    store, ref = unread_at("model/norm/zarr.json", DENIED)
    store.delete([f"{SMALL}/model/w/c/0/0"])
    with pytest.raises(Corrupt, match=rf"^file {SMALL}/model/w/c/0/0: .*got none \(and 1 more\)$"):
        require_objects(store, ref, threads=1)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(NotFound("no such file"), "missing"), (Corrupt("expected 88 bytes, got 50"), "chunk"), (DENIED, "unreadable")],
    ids=["gone", "shortened", "denied"],
)
def test_an_object_that_changes_after_it_was_listed_is_damage_and_one_that_is_refused_is_not(
    error: BehemothError, kind: str
) -> None:
    store, ref = unread_at("model/w/c/0/0", error)
    found = check(store).problems
    assert {(problem.object_key, problem.message) for problem in found} == {(f"{SMALL}/model/w/c/0/0", error.message)}
    assert kind in {problem.kind for problem in found} <= {kind, "shard-index"}
    with pytest.raises(Unavailable if error is DENIED else Corrupt):
        require_committed(store, ref, threads=1)
