"""A committed checkpoint is copied to another store: byte for byte, proven, and killed at any write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from behemoth.base.errors import Conflict, Corrupt, NotFound, Unavailable
from behemoth.base.ids import Step, UploadId, WriteId
from behemoth.checkpoint import filling
from behemoth.checkpoint.commit_log import commits, reject
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.draining import DAMAGED, RUBBISH, copy_checkpoint
from behemoth.checkpoint.framing import framed, unframed
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.marker import Marker
from behemoth.checkpoint.paths import rejected_key
from behemoth.checkpoint.verify import verify
from behemoth.ports import ObjectStore, SavesTo, UploadsParts
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, Die, FaultyBucket, FaultyStore, When
from behemoth.testing.store import MemoryStore, contents
from checkpoint.company_rig import small_parts
from checkpoint.late_bucket import LateDeletions
from checkpoint.saved_checkpoint import big_layout, save, small_layout
from servers.s3_server import S3Server
from storage.s3_stores import let_in, new_place, opened

LEAST_BYTES = 16
"""Of a piece, so that small arrays have objects of several."""
LIMIT_S = 30.0
"""Of any wait: it ends a hang and judges no speed."""
Made = Callable[[], MemoryStore | MemoryBucket]


def bucket() -> MemoryBucket:
    return MemoryBucket(min_part_bytes=LEAST_BYTES)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Objects of a few bytes are moved in pieces, as those of gigabytes are."""
    monkeypatch.setattr(filling, "PIECE_BYTES", LEAST_BYTES)
    monkeypatch.setattr(filling, "MIN_PART_BYTES", LEAST_BYTES)
    with small_parts(LEAST_BYTES, 2 * LEAST_BYTES):
        yield


def saved(store: SavesTo, step: int = 10, write_id: str = "a1-10", *, seed: int | None = None) -> CommitRef:
    record = save(store, small_layout(), step=step, write_id=write_id, seed=seed)
    assert record is not None
    return record.ref


def is_restorable(store: ObjectStore) -> bool:
    """Whether there is a checkpoint, and then a whole one."""
    found = commits(store)
    for one in found:
        report = verify(store, one, threads=1, deep=True)
        assert report.is_intact, report.problems
    return bool(found)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("target", [MemoryStore, bucket])
@pytest.mark.parametrize("source", [MemoryStore, bucket])
def test_a_copy_has_the_same_objects_byte_for_byte(source: Made, target: Made) -> None:
    upper, lower = source(), target()
    ref = saved(upper)
    told: list[tuple[int, int]] = []
    copied = copy_checkpoint(upper, lower, ref, threads=3, progress=lambda done, total: told.append((done, total)))
    assert contents(lower) == contents(upper)
    assert copied.record.ref == ref
    assert copied.found_bytes == 0
    assert told[-1] == (copied.num_bytes, copied.num_bytes)
    assert not isinstance(lower, UploadsParts) or list(lower.list_uploads("")) == []


def test_large_arrays_go_from_a_directory_to_a_bucket_in_real_parts_and_back(tmp_path: Path) -> None:
    lower = MemoryBucket()
    with closing(LocalStore(tmp_path / "upper")) as upper, closing(LocalStore(tmp_path / "again")) as again:
        record = save(upper, big_layout(), step=1, write_id="a1-1")
        assert record is not None
        copy_checkpoint(upper, lower, record.ref, threads=2)
        copy_checkpoint(lower, again, record.ref, threads=2)
        assert contents(lower) == contents(upper) == contents(again)


def test_a_checkpoint_goes_to_a_real_server_and_comes_back(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_in(monkeypatch, s3)
    with (
        closing(LocalStore(tmp_path / "upper")) as upper,
        closing(LocalStore(tmp_path / "again")) as again,
        opened(new_place()) as lower,
    ):
        record = save(upper, big_layout(), step=1, write_id="a1-1")
        assert record is not None
        copy_checkpoint(upper, lower, record.ref, threads=2)
        assert is_restorable(lower)
        assert list(lower.list_uploads("")) == []
        copy_checkpoint(lower, again, record.ref, threads=2)
        assert contents(again) == contents(upper)


def test_a_record_of_a_later_minor_version_keeps_its_bytes() -> None:
    upper, lower = MemoryStore(), MemoryStore()
    ref = saved(upper)
    (key,) = [info.key for info in upper.list("commits")]
    body = unframed(contents(upper)[key], name="commit")
    later = framed(body.replace(b'"minor":0', b'"minor":7').replace(b'{"format"', b'{"news":1,"format"', 1))
    upper.delete([key])
    upper.create(key, later)
    assert CommitRecord.decode(later).format.minor == 7
    copy_checkpoint(upper, lower, ref, threads=1)
    assert contents(lower)[key] == later


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("target", [MemoryStore, bucket])
def test_killed_at_every_write_the_target_has_a_whole_checkpoint_or_rubbish_that_goes(target: Made) -> None:
    upper = MemoryStore()
    ref = saved(upper)
    num_deaths = 0
    for write in range(1000):
        for when in When:
            lower = target()
            dying = _dying(lower, Die(write=write, when=when))
            try:
                copy_checkpoint(upper, dying, ref, threads=1)
                assert dying.num_writes <= write  # it has fewer writes, and lived
                assert num_deaths > 20
                return
            except Crash:
                num_deaths += 1
            after = lower.after_power_loss(seed=write) if isinstance(lower, MemoryStore) and write % 2 else lower
            if not is_restorable(after):
                _expect_nothing_after_gc(after.copy())
            copied = copy_checkpoint(upper, after, ref, threads=2)
            assert contents(after) == contents(upper)
            assert copied.record.ref == ref
            assert not isinstance(after, MemoryBucket) or list(after.list_uploads("")) == []


def _dying(store: MemoryStore | MemoryBucket, death: Die) -> FaultyStore | FaultyBucket:
    return FaultyStore(store, death) if isinstance(store, MemoryStore) else FaultyBucket(store, death)


def _expect_nothing_after_gc(store: MemoryStore | MemoryBucket) -> None:
    execute(store, plan_gc(store, in_flight=()))
    assert contents(store) == {}
    assert not isinstance(store, MemoryBucket) or list(store.list_uploads("")) == []


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("target", [MemoryStore, bucket])
def test_what_is_there_whole_already_is_not_copied_again(target: Made) -> None:
    upper, lower = MemoryStore(), target()
    ref = saved(upper)
    first = copy_checkpoint(upper, lower, ref, threads=1)
    lower.delete([info.key for info in lower.list("commits")])
    again = copy_checkpoint(upper, lower, ref, threads=1)
    assert (again.num_bytes, again.found_bytes) == (0, first.num_bytes)
    assert contents(lower) == contents(upper)
    assert copy_checkpoint(upper, lower, ref, threads=1).num_bytes == 0


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("target", [MemoryStore, bucket])
def test_what_an_earlier_copy_left_is_mended_whichever_bit_is_wrong(target: Made) -> None:
    upper, whole = MemoryStore(), target()
    ref = saved(upper)
    copy_checkpoint(upper, whole, ref, threads=1)
    whole.delete([info.key for info in whole.list("commits")])
    for key, data in contents(whole).items():
        for at in {0, len(data) // 2, len(data) - 5, len(data) - 1}:
            lower = whole.copy()
            lower.delete([key])
            lower.create(key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            copied = copy_checkpoint(upper, lower, ref, threads=2)
            assert contents(lower) == contents(upper), (key, at)
            assert bool(copied.num_bytes) is ("/c/" in key or key.endswith("/c"))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("target", [MemoryStore, bucket])
def test_a_damaged_checkpoint_is_not_copied_whichever_bit_is_wrong(target: Made) -> None:
    upper = MemoryStore()
    ref = saved(upper)
    for key, data in contents(upper).items():
        if key.startswith("commits/"):
            continue
        for at in {0, len(data) // 2, len(data) - 1}:
            broken = upper.copy()
            broken.delete([key])
            broken.create(key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            lower = target()
            with pytest.raises(Corrupt) as caught:
                copy_checkpoint(broken, lower, ref, threads=2)
            assert key in str(caught.value), (key, at)
            assert commits(lower) == []
            assert not isinstance(lower, MemoryBucket) or list(lower.list_uploads("")) == []


def test_whole_chunks_of_another_checkpoint_do_not_pass_in_the_source() -> None:
    upper, other = MemoryStore(), MemoryStore()
    ref = saved(upper)
    saved(other, seed=99)
    key = next(info.key for info in upper.list("steps") if "model/w/c" in info.key)
    upper.delete([key])
    upper.create(key, contents(other)[key])
    with pytest.raises(Corrupt, match=r"^source: .*model/w") as caught:
        copy_checkpoint(upper, MemoryStore(), ref, threads=1)
    assert caught.value.code == DAMAGED


def test_whole_chunks_of_another_checkpoint_at_the_target_are_removed_and_the_next_copy_is_right() -> None:
    upper, other = MemoryStore(), MemoryStore()
    ref = saved(upper)
    saved(other, seed=99)
    lower = MemoryStore()
    key = next(info.key for info in upper.list("steps") if "model/w/c" in info.key)
    lower.create(key, contents(other)[key])
    with pytest.raises(Unavailable) as caught:
        copy_checkpoint(upper, lower, ref, threads=1)
    assert caught.value.code == RUBBISH
    copy_checkpoint(upper, lower, ref, threads=1)
    assert contents(lower) == contents(upper)


def test_another_write_of_the_step_at_the_target_is_refused_before_anything_is_copied() -> None:
    upper, lower = MemoryStore(), MemoryStore()
    ref = saved(upper)
    standing = saved(lower, write_id="a2-10", seed=7)
    before = contents(lower)
    with pytest.raises(Conflict, match="a2-10"):
        copy_checkpoint(upper, lower, ref, threads=1)
    assert contents(lower) == before
    reject(lower, standing, "another history")
    copy_checkpoint(upper, lower, ref, threads=1)
    assert [one.write_id for one in commits(lower) if isinstance(one, CommitRef)] == ["a1-10"]


def test_a_rejection_that_was_cut_off_keeps_no_other_write_of_its_step_away() -> None:
    upper, lower = MemoryStore(), MemoryStore()
    ref = saved(upper)
    old = saved(lower, write_id="a2-10", seed=7)
    marker = Marker.of(old.step, old.write_id, reason="another history")
    lower.create(rejected_key(old.step, old.write_id), marker.encode())  # the record would go next
    copy_checkpoint(upper, lower, ref, threads=1)
    assert [one.write_id for one in commits(lower) if isinstance(one, CommitRef)] == ["a1-10"]


def test_a_checkpoint_that_the_target_has_rejected_does_not_come_back() -> None:
    upper, lower = MemoryStore(), MemoryStore()
    ref = saved(upper)
    copy_checkpoint(upper, lower, ref, threads=1)
    reject(lower, ref, "it did not restore")
    with pytest.raises(Conflict, match="rejected"):
        copy_checkpoint(upper, lower, ref, threads=1)
    assert commits(lower) == []


def test_a_checkpoint_that_is_not_there_is_not_found() -> None:
    ref = CommitRef(step=Step(3), write_id=WriteId("a1-3"), size_bytes=1)
    with pytest.raises(NotFound):
        copy_checkpoint(MemoryStore(), MemoryStore(), ref, threads=1)


def test_every_byte_that_is_read_of_arrays_is_asked_for_before(tmp_path: Path) -> None:
    asked: list[int] = []
    with closing(LocalStore(tmp_path / "upper")) as upper:
        record = save(upper, big_layout(), step=1, write_id="a1-1")
        assert record is not None
        copied = copy_checkpoint(upper, MemoryStore(), record.ref, threads=2, pace=asked.append)
    assert record.data_bytes <= sum(asked) <= copied.num_bytes


@pytest.mark.parametrize("target", [MemoryStore, bucket])
def test_an_object_is_filled_in_any_order(target: Made) -> None:
    store, data = target(), bytes(range(50))
    pieces = filling.filling_of(store)
    for number in (3, 1, 4, 2):
        begin = (number - 1) * LEAST_BYTES
        piece = filling.ObjectPiece(key="a", size_bytes=50, number=number, num_pieces=4, offset_bytes=begin)
        pieces.put(piece, [data[begin : begin + 7], data[begin + 7 : begin + LEAST_BYTES]])
    pieces.seal(["a"])
    pieces.end()
    assert contents(store) == {"a": data}


def piece_of(key: str, number: int) -> filling.ObjectPiece:
    """Of an object of two pieces of four bytes."""
    return filling.ObjectPiece(key=key, size_bytes=8, number=number, num_pieces=2, offset_bytes=4 * (number - 1))


class SlowToBegin(MemoryBucket):
    """Begins the upload of `a` when `go_on` is set."""

    def __init__(self) -> None:
        super().__init__(min_part_bytes=4)
        self.asked, self.go_on = threading.Event(), threading.Event()

    def begin_upload(self, key: str) -> UploadId:
        if key == "a":
            self.asked.set()
            assert self.go_on.wait(LIMIT_S)
        return super().begin_upload(key)


def test_an_upload_whose_begin_takes_long_holds_up_no_other_object() -> None:
    store = SlowToBegin()
    pieces = filling.filling_of(store)
    with ThreadPoolExecutor(2) as pool:
        of_a = [pool.submit(pieces.put, piece_of("a", number), [b"data"]) for number in (1, 2)]
        assert store.asked.wait(LIMIT_S)
        for number in (1, 2):
            other = threading.Thread(target=pieces.put, args=(piece_of("b", number), [b"data"]), daemon=True)
            other.start()
            other.join(LIMIT_S)
        whole = contents(store)
        store.go_on.set()
        for put in of_a:
            put.result()
    pieces.end()
    assert whole == {"b": b"datadata"}
    assert contents(store) == {"a": b"datadata", "b": b"datadata"}


class NeverAborting(MemoryBucket):
    """Away when uploads are to be ended."""

    num_tries = 0

    def abort_upload(self, key: str, upload_id: UploadId) -> None:
        self.num_tries += 1
        raise Unavailable(f"abort {upload_id} of {key}: the store is away")


def test_of_a_store_that_is_away_nobody_waits_for_the_end_of_each_upload() -> None:
    store = NeverAborting(min_part_bytes=4)
    pieces = filling.filling_of(store)
    for key in ("steps/1/a", "steps/1/b", "steps/1/c"):
        pieces.put(piece_of(key, 1), [b"data"])
    pieces.end()
    assert store.num_tries == 1
    assert len(list(store.list_uploads(""))) == 3


def test_an_object_that_is_too_large_for_so_many_parts_gets_larger_ones() -> None:
    pieces = filling.filling_of(MemoryBucket())
    assert pieces.piece_bytes(1 << 30) == filling.PIECE_BYTES
    for size_bytes in (5 << 40, (5 << 40) + 1):
        assert -(-size_bytes // pieces.piece_bytes(size_bytes)) <= 10_000


@pytest.mark.parametrize("seed", range(8))
def test_a_power_cut_behind_a_copy_takes_nothing_of_it(seed: int) -> None:
    source, target = MemoryStore(), MemoryStore()
    ref = saved(source)
    copy_checkpoint(source, target, ref, threads=1)
    assert verify(target.after_power_loss(seed=seed), ref, threads=1, deep=True).is_intact


@pytest.mark.parametrize("made", [MemoryStore, bucket])
def test_what_stood_at_the_target_and_is_no_object_of_the_checkpoint_is_gone_from_the_copy(made: Made) -> None:
    source, target = MemoryStore(), made()
    ref = saved(source)
    target.create("steps/000000010-a1-10/model/notes.txt", b"somebody's")
    copy_checkpoint(source, target, ref, threads=1)
    assert verify(target, ref, threads=1, deep=True).problems == ()


def cut_off(upper: ObjectStore) -> LateDeletions:
    """What a copy of its checkpoint has left: every object, and no commit."""
    lower = LateDeletions()
    for key, data in contents(upper).items():
        if not key.startswith("commits/"):
            lower.create(key, data)
    return lower


def _cut(_key: str, data: bytes) -> bytes:
    return data[:-1]


def _flipped(_key: str, data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("spoiled", [_cut, _flipped, None])
def test_a_deletion_of_a_copy_that_was_killed_takes_nothing_of_the_one_that_went_on(
    spoiled: Callable[[str, bytes], bytes] | None,
) -> None:
    """It took away what was wrong under the names that the right objects have."""
    upper, other = bucket(), bucket()
    ref = saved(upper)
    saved(other, seed=99)
    whole = contents(upper)
    keys = [key for key in whole if key.startswith("steps/") and (spoiled is not None or "model/w/c" in key)]
    for key in keys:
        lower = cut_off(upper)
        lower.delete([key])
        lower.create(key, contents(other)[key] if spoiled is None else spoiled(key, whole[key]))
        lower.is_late = True
        with pytest.raises(Crash):
            copy_checkpoint(upper, lower, ref, threads=1)
        lower.is_late = False
        if spoiled is None:  # chunks of something else: the next copy finds them too, and the one behind it goes on
            with pytest.raises(Unavailable):
                copy_checkpoint(upper, lower, ref, threads=1)
        copy_checkpoint(upper, lower, ref, threads=1)
        lower.arrive()
        assert contents(lower) == whole, key


def test_a_copy_that_was_overtaken_by_another_of_the_same_checkpoint_ends_well() -> None:
    """The other one does all of it while this one is about to read its last byte."""
    upper, lower = MemoryStore(), MemoryStore()
    ref = saved(upper)
    others: list[int] = []

    def overtaken(done: int, total: int) -> None:
        if done == total and not others:
            others.append(copy_checkpoint(upper, lower, ref, threads=1).num_bytes)

    copied = copy_checkpoint(upper, lower, ref, threads=1, progress=overtaken)
    assert (len(others), copied.record.ref) == (1, ref)
    assert contents(lower) == contents(upper)


def test_a_copy_does_not_believe_an_object_that_came_meanwhile() -> None:
    upper, lower = MemoryStore(), MemoryStore()
    ref = saved(upper)
    name = next(key for key in contents(upper) if key.endswith("zarr.json"))

    def disturbed(done: int, total: int) -> None:
        if done == total:
            lower.create(name, b"{}")

    with pytest.raises(Conflict, match=rf"object {name}: expected none, or one with the \d+ bytes of this write"):
        copy_checkpoint(upper, lower, ref, threads=1, progress=disturbed)
    assert commits(lower) == []
    copy_checkpoint(upper, lower, ref, threads=1)  # which is why it is no damage: the next one puts it right
    assert contents(lower) == contents(upper)
