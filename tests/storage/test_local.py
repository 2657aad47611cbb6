"""What a directory as a store owes beyond the contract: durability order, links, errors, leftovers, partial writes."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import Buffer

from behemoth.base.errors import (
    BehemothError,
    Conflict,
    Corrupt,
    Denied,
    Invalid,
    NotFound,
    Timeout,
    Unavailable,
)
from behemoth.ports import Part
from behemoth.storage import direct, local, open_files
from behemoth.storage.direct import DIRECT_BYTES
from behemoth.storage.keys import TEMP_PREFIX
from behemoth.storage.local import LocalStore
from behemoth.storage.positional import new_bounce
from behemoth.testing.store import read

DATA = b"0123456789" * 10
LIMIT_S = 30.0
"""Of any wait: it ends a hang and judges no speed."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    store = LocalStore(tmp_path / "above" / "root", max_open_files=4)
    yield store
    store.close()


def _write(store: LocalStore, key: str, data: bytes = DATA) -> None:
    store.write_parts(key, size_bytes=len(data), parts=[Part(offset_bytes=0, buffers=[data])])


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_opening_and_listing_make_nothing(store: LocalStore, tmp_path: Path) -> None:
    assert list(store.list("")) == []
    assert list(tmp_path.iterdir()) == []


def test_seal_syncs_the_file_before_its_folders_up_to_the_root(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(store, "steps/1/model/w/c/0")
    _write(store, "steps/1/zarr.json")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    store.seal(["steps/1/model/w/c/0", "steps/1/zarr.json"])
    below = [os.path.relpath(path, store.root) for path in synced]
    assert below == [
        "steps/1/model/w/c/0",
        "steps/1/zarr.json",
        "steps/1/model/w/c",
        "steps/1/model/w",
        "steps/1/model",
        "steps/1",
        "steps",
        ".",
    ]


def test_the_entry_of_a_new_root_is_made_durable_too(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    store.create("commits/1.json", DATA)
    assert {os.path.dirname(store.root), os.path.dirname(os.path.dirname(store.root)), store.root} <= set(synced)


def test_create_links_only_what_is_durable_and_syncs_the_folder_after(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("commits/0.json", DATA)
    happened: list[str] = []
    link, fsync = os.link, os.fsync

    def watched_link(*args: Any, **kwargs: Any) -> None:
        happened.append("link")
        link(*args, **kwargs)

    def watched_fsync(fd: int) -> None:
        happened.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))[:14]}")
        fsync(fd)

    monkeypatch.setattr(os, "link", watched_link)
    monkeypatch.setattr(os, "fsync", watched_fsync)
    store.create("commits/1.json", DATA)
    assert happened == [f"fsync {TEMP_PREFIX}", "link", "fsync commits", "fsync root"]


def test_partial_writes_and_reads_are_continued(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev, preadv = os.pwritev, os.preadv

    def short_write(fd: int, views: list[memoryview], at: int) -> int:
        return pwritev(fd, [b"".join(views)[:7]], at)

    monkeypatch.setattr(os, "pwritev", short_write)
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:3]], at))
    buffers = [DATA[:1], DATA[1:20], b"", DATA[20:21], DATA[21:]]
    store.write_parts("a", size_bytes=105, parts=[Part(offset_bytes=5, buffers=buffers)])
    assert read(store, "a", 105) == bytes(5) + DATA


def test_parts_that_follow_one_another_are_one_system_call(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    pwritev = os.pwritev

    def counted(fd: int, views: list[memoryview], at: int) -> int:
        calls.append(at)
        return pwritev(fd, views, at)

    monkeypatch.setattr(os, "pwritev", counted)
    at = (0, 10, 20, 50)
    parts = [Part(offset_bytes=offset_bytes, buffers=[DATA[:10]]) for offset_bytes in at]
    store.write_parts("a", size_bytes=60, parts=parts)
    assert calls == [0, 50]


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, Unavailable, "no-space"),
        (errno.EDQUOT, Unavailable, "no-space"),
        (errno.EIO, Unavailable, "io-error"),
        (errno.EUCLEAN, Unavailable, "io-error"),
        (errno.EBADMSG, Unavailable, "io-error"),
        (errno.EMFILE, Unavailable, "too-many-files"),
        (errno.ESTALE, Unavailable, "unavailable"),
        (errno.EACCES, Denied, "denied"),
        (errno.EROFS, Denied, "denied"),
        (errno.EFBIG, Invalid, "invalid"),
    ],
)
def test_the_systems_errors_become_ours(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[BehemothError], code: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwritev", fail)
    writes: tuple[Callable[[], object], ...] = (lambda: _write(store, "a/b"), lambda: store.create("a/c", DATA))
    for write in writes:
        with pytest.raises(kind, match=rf"^{store.root}: (write|create) a/[bc]: ") as caught:
            write()
        assert caught.value.code == code
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.hint or code == "unavailable"
    assert list(store.leftovers()) == []
    assert not Path(store.root, "a", "c").exists()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_told_as_that(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A disk with exFAT, to which somebody exports, says that the operation is not permitted."""
    _write(store, "a/b")

    def fail(*_: object, **_how: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", fail)
    writes: tuple[Callable[[], object], ...] = (lambda: store.create("a/c", DATA), lambda: store.move("a/b", "c"))
    for write in writes:
        with pytest.raises(Invalid, match=rf"^{store.root}/.*: expected a file system with hard links") as caught:
            write()
        assert caught.value.code == "no-links"
    assert list(store.leftovers()) == []


def test_whatever_goes_wrong_the_store_is_named_once(store: LocalStore, tmp_path: Path) -> None:
    store.create("a", DATA)
    os.symlink(tmp_path, Path(store.root, "link"))
    calls: list[Callable[[], object]] = [
        lambda: read(store, "b", 1),
        lambda: read(store, "a", len(DATA) + 1),
        lambda: read(store, "link/b", 1),
        lambda: store.seal(["b"]),
        lambda: store.create("a", b""),
        lambda: store.create("a/b", b""),
        lambda: store.create("link/b", b""),
        lambda: store.replace("a", old=b"other", new=b""),
        lambda: store.write_parts("a", size_bytes=1, parts=[Part(offset_bytes=0, buffers=[b"x"])]),
        lambda: store.move("b", "c"),
        lambda: store.cached_share([("b", 0, 1)]),
    ]
    for call in calls:
        with pytest.raises(BehemothError) as caught:
            call()
        assert caught.value.message.startswith(store.root)
        assert caught.value.message.count(store.root) == 1


def test_a_failed_fsync_is_told_by_seal(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(store, "a/b")

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "lost page write")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Unavailable, match="seal a/b: input/output error"):
        store.seal(["a/b"])


def test_more_files_than_the_limit_are_synced_before_they_are_closed(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(store, "warm-up")
    before = _open_fds()
    synced: list[str] = []
    for number in range(4):
        _write(store, f"a/{number}")
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    for number in range(4, 20):
        _write(store, f"a/{number}")
    assert _open_fds() - before <= 4
    assert synced == [f"{store.root}/a/{number}" for number in range(16)]
    store.seal([f"a/{number}" for number in range(20)])
    store.close()
    assert _open_fds() < before


FEW_FILES = """
import resource, sys
from behemoth.ports import Part
from behemoth.storage.local import LocalStore

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
store = LocalStore(sys.argv[1])
keys = [f"a/{number}" for number in range(100)]
for key in keys:
    store.write_parts(key, size_bytes=4, parts=[Part(offset_bytes=0, buffers=[b"data"])])
store.create("b", b"data")
assert len(list(store.list(""))) == 101
store.seal(keys)
"""


def test_a_process_that_may_open_few_files_writes_many(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FEW_FILES, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_file_that_another_process_replaced_is_written_anew(store: LocalStore) -> None:
    _write(store, "a/b")
    Path(store.root, "a", "b").unlink()
    _write(store, "a/b", b"new")
    assert read(LocalStore(store.root), "a/b", 3) == b"new"


def test_a_create_that_finds_its_folder_or_temporary_file_cleared_away_tries_again(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link
    hindered: list[str] = []

    def clear_away_twice(temp: str, path: str, **kwargs: bool) -> None:
        if len(hindered) < 2:
            hindered.append(temp)
            os.unlink(temp)
            os.rmdir(os.path.dirname(temp))
        link(temp, path, **kwargs)

    monkeypatch.setattr(os, "link", clear_away_twice)
    store.create("commits/1.json", DATA)
    assert len(hindered) == 2
    assert read(store, "commits/1.json", len(DATA)) == DATA
    assert list(store.leftovers()) == []


def test_a_link_that_succeeded_but_whose_answer_was_lost_counts_as_won(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_twice(temp: str, path: str, **kwargs: bool) -> None:
        link(temp, path, **kwargs)
        link(temp, path, **kwargs)

    monkeypatch.setattr(os, "link", link_twice)
    store.create("commits/1.json", DATA)
    assert read(store, "commits/1.json", len(DATA)) == DATA


def test_a_killed_create_leaves_a_leftover_that_is_no_object(store: LocalStore) -> None:
    program = (
        "import os, signal, sys; from behemoth.storage.local import LocalStore\n"
        "os.link = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "LocalStore(sys.argv[1]).create('commits/1.json', b'data')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, store.root], timeout=60, check=False)
    assert ended.returncode == -9
    assert list(store.list("")) == []
    (leftover,) = store.leftovers()
    assert leftover.startswith(f"commits/{TEMP_PREFIX}")
    store.delete_leftovers([leftover, leftover])
    assert list(store.leftovers()) == []
    assert os.listdir(store.root) == []


def test_folders_that_a_write_made_and_put_nothing_into_are_left_over(store: LocalStore) -> None:
    store.create("steps/1/full/zarr.json", DATA)
    Path(store.root, "steps/1/array/c").mkdir(parents=True)
    Path(store.root, "steps/2/array").mkdir(parents=True)
    assert set(store.leftovers()) == {"steps/1/array/c/", "steps/1/array/", "steps/2/array/", "steps/2/"}
    store.delete_leftovers(list(store.leftovers()))
    assert list(store.leftovers()) == []
    assert [info.key for info in store.list("")] == ["steps/1/full/zarr.json"]
    assert not Path(store.root, "steps/2").exists()


def test_a_folder_above_goes_with_the_last_leftover_in_it(store: LocalStore) -> None:
    store.create("steps/1/array/zarr.json", DATA)
    Path(store.root, "steps/1/array/c").mkdir()
    leftovers = list(store.leftovers())
    assert leftovers == ["steps/1/array/c/"]
    store.delete(["steps/1/array/zarr.json"])
    store.delete_leftovers(leftovers)
    assert os.listdir(store.root) == []


def test_only_leftovers_are_deleted_as_such(store: LocalStore) -> None:
    store.create("commits/1.json", DATA)
    for name in ("commits/1.json", f"../{TEMP_PREFIX}x"):
        with pytest.raises(Invalid):
            store.delete_leftovers([name])
    assert read(store, "commits/1.json", len(DATA)) == DATA


def test_a_key_cannot_name_an_unfinished_file(store: LocalStore) -> None:
    with pytest.raises(Invalid, match="unfinished"):
        store.create(f"a/{TEMP_PREFIX}1", DATA)


def test_folders_go_with_their_last_object_but_never_the_root(store: LocalStore) -> None:
    for key in ("steps/1/a/c/0", "steps/1/b", "steps/2/a"):
        store.create(key, DATA)
    store.delete(["steps/1/a/c/0", "steps/1/b"])
    assert os.listdir(os.path.join(store.root, "steps")) == ["2"]
    store.delete(["steps/2/a"])
    assert os.listdir(store.root) == []


@pytest.fixture
def happened(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every unlink and fsync from now on, by the path below the root."""
    calls: list[str] = []
    unlink, fsync = os.unlink, os.fsync

    def watched_unlink(path: str) -> None:
        calls.append(f"unlink {os.path.relpath(path, store.root)}")
        unlink(path)

    def watched_fsync(fd: int) -> None:
        calls.append(f"fsync {os.path.relpath(os.readlink(f'/proc/self/fd/{fd}'), store.root)}")
        fsync(fd)

    monkeypatch.setattr(os, "unlink", watched_unlink)
    monkeypatch.setattr(os, "fsync", watched_fsync)
    return calls


def test_deleting_goes_in_order_and_is_durable_on_return(store: LocalStore, happened: list[str]) -> None:
    for key in ("commits/1.json", "commits/2.json", "steps/a"):
        store.create(key, DATA)
    happened.clear()
    store.delete(["steps/a", "commits/1.json"])
    assert happened == ["unlink steps/a", "unlink commits/1.json", "fsync commits", "fsync ."]


def test_a_moved_object_has_its_new_name_durably_before_it_loses_the_old_one(
    store: LocalStore, happened: list[str]
) -> None:
    store.create("a/x", DATA)
    happened.clear()
    store.move("a/x", "b/x")
    assert happened == ["fsync b", "fsync .", "unlink a/x", "fsync ."]


def test_what_is_written_under_the_old_name_of_a_moved_object_does_not_reach_it(store: LocalStore) -> None:
    part = [Part(offset_bytes=0, buffers=[DATA])]
    store.write_parts("a", size_bytes=len(DATA), parts=part)
    store.move("a", "b")
    store.write_parts("a", size_bytes=len(DATA), parts=[Part(offset_bytes=0, buffers=[bytes(len(DATA))])])
    assert read(store, "b", len(DATA)) == DATA
    assert read(store, "a", len(DATA)) == bytes(len(DATA))


def test_moving_what_is_not_there_makes_no_folder(store: LocalStore) -> None:
    store.create("a/x", DATA)
    with pytest.raises(NotFound):
        store.move("a/y", "b/y")
    assert list(store.leftovers()) == []


def test_a_symbolic_link_is_not_followed_out_of_the_root(store: LocalStore, tmp_path: Path) -> None:
    store.create("keep", DATA)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(DATA)
    Path(store.root, "folder").symlink_to(outside)
    Path(store.root, "file").symlink_to(outside / "secret")
    for key in ("folder/secret", "file"):
        with pytest.raises(Denied, match="symbolic link"):
            store.read_into(key, offset_bytes=0, into=bytearray(1))
        with pytest.raises(Denied, match="symbolic link"):
            _write(store, key)
    with pytest.raises(Denied, match="symbolic link"):
        store.create("folder/new", DATA)
    with pytest.raises(Denied, match="symbolic link"):
        store.delete(["folder/secret"])
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert [info.key for info in store.list("")] == ["file", "folder", "keep"]
    store.delete(["file", "folder"])
    assert (outside / "secret").read_bytes() == DATA


def test_something_that_is_no_regular_file_neither_hangs_nor_passes(store: LocalStore) -> None:
    store.create("keep", DATA)
    os.mkfifo(os.path.join(store.root, "pipe"))
    with pytest.raises(Corrupt, match="expected a regular file"):
        store.read_into("pipe", offset_bytes=0, into=bytearray(1))
    with pytest.raises(Conflict, match="expected a regular file"):
        _write(store, "pipe")
    os.mkdir(os.path.join(store.root, "folder"))
    with pytest.raises((Corrupt, Conflict, NotFound)):
        store.read_into("folder", offset_bytes=0, into=bytearray(1))


def test_many_processes_fill_one_object(store: LocalStore) -> None:
    program = (
        "import sys; from behemoth.ports import Part; from behemoth.storage.local import LocalStore\n"
        "root, number = sys.argv[1], int(sys.argv[2]); store = LocalStore(root)\n"
        "for piece in range(number, 400, 4):\n"
        "    part = Part(offset_bytes=997 * piece, buffers=[bytes([piece % 251 + 1]) * 997])\n"
        "    store.write_parts('a/b', size_bytes=997 * 400, parts=[part])\n"
        "store.seal(['a/b'])\n"
    )
    command = [sys.executable, "-c", program, store.root]
    processes = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert read(store, "a/b", 997 * 400) == b"".join(bytes([piece % 251 + 1]) * 997 for piece in range(400))


BIG = os.urandom(DIRECT_BYTES + 5000)


def test_without_direct_writes_all_bytes_go_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[bool] = []
    pwritev = os.pwritev

    def watched(fd: int, views: list[memoryview], at: int) -> int:
        used.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT != 0)
        return pwritev(fd, views, at)

    monkeypatch.setattr(os, "pwritev", watched)
    with closing(LocalStore(tmp_path, direct_writes=False)) as store:
        store.write_parts("a", size_bytes=len(BIG), parts=[Part(offset_bytes=0, buffers=[BIG])])
        store.seal(["a"])
    assert set(used) == {False}
    assert (tmp_path / "a").read_bytes() == BIG


def test_a_large_write_goes_past_the_page_cache_but_for_its_edges(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[bool, int, int]] = []
    pwritev = os.pwritev

    def watched(fd: int, views: list[memoryview], at: int) -> int:
        is_direct = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT != 0
        written.append((is_direct, at, sum(view.nbytes for view in views)))
        return pwritev(fd, views, at)

    monkeypatch.setattr(os, "pwritev", watched)
    store.write_parts("a", size_bytes=len(BIG) + 100, parts=[Part(offset_bytes=100, buffers=[BIG[:7], BIG[7:]])])
    assert read(store, "a", len(BIG) + 100) == bytes(100) + BIG
    assert sorted(written, key=lambda one: one[1]) == [
        (False, 100, 4096 - 100),
        (True, 4096, DIRECT_BYTES),
        (False, 4096 + DIRECT_BYTES, 5000 - (4096 - 100)),
    ]


@pytest.mark.parametrize("refused", ["open", "pwritev", "preadv"])
def test_a_file_system_without_direct_io_gets_ordinary_transfers(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def refusing(call: Callable[..., int]) -> Callable[..., int]:
        def answer(what: int | str, *rest: object) -> int:
            flags = rest[0] if isinstance(what, str) else fcntl.fcntl(what, fcntl.F_GETFL)
            if isinstance(flags, int) and flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "no direct I/O")
            return call(what, *rest)

        return answer

    monkeypatch.setattr(os, refused, refusing(getattr(os, refused)))
    monkeypatch.setattr(direct, "cached_bytes", lambda *_: 0)
    _write(store, "a", BIG)
    into = new_bounce()[: len(BIG)]
    store.read_into("a", offset_bytes=0, into=into)
    assert into == BIG


def test_a_full_disk_is_told_by_a_direct_write_too(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, *_: object) -> int:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(Unavailable) as caught:
        _write(store, "a", BIG)
    assert caught.value.code == "no-space"


def test_a_new_folder_is_synced_by_seal_and_not_before(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(store, "first")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    _write(store, "steps/1/model/w/c")
    assert synced == []


@pytest.mark.parametrize(
    ("cached", "skew", "is_direct"),
    [(0, 0, True), (len(BIG), 0, False), (None, 0, False), (0, 64, False)],
)
def test_a_large_read_goes_past_the_page_cache_only_where_that_is_known_to_be_empty(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, cached: int | None, skew: int, is_direct: bool
) -> None:
    _write(store, "a", BIG)
    monkeypatch.setattr(direct, "cached_bytes", lambda *_: cached)
    used: list[bool] = []
    preadv = os.preadv

    def watched(fd: int, views: list[memoryview], at: int) -> int:
        used.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT != 0)
        return preadv(fd, views, at)

    monkeypatch.setattr(os, "preadv", watched)
    into = new_bounce()[skew : skew + len(BIG)]
    store.read_into("a", offset_bytes=0, into=into)
    assert into == BIG
    assert used[0] is is_direct


@pytest.mark.parametrize(("behind", "num_calls"), [((4,), 1), ((1, 0, 4000), 1), ((4097,), 2)])
def test_what_follows_a_large_buffer_within_a_page_is_read_with_it(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, behind: tuple[int, ...], num_calls: int
) -> None:
    """A chunk and its CRC: the second would else be a read of its own, through the page cache."""
    data = os.urandom(DIRECT_BYTES + 16384)
    _write(store, "a", data)
    monkeypatch.setattr(direct, "cached_bytes", lambda *_: 0)
    calls: list[int] = []
    preadv = os.preadv

    def counted(fd: int, views: Sequence[Buffer], at: int) -> int:
        calls.append(at)
        return preadv(fd, views, at)

    monkeypatch.setattr(os, "preadv", counted)
    into: tuple[Buffer, ...] = (new_bounce()[:DIRECT_BYTES], *(bytearray(size) for size in behind))
    store.read_into("a", offset_bytes=4096, into=into)
    assert b"".join(into) == data[4096 : 4096 + DIRECT_BYTES + sum(behind)]
    assert len(calls) == num_calls


def test_a_large_read_beyond_the_end_is_corrupt(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(store, "a", BIG)
    monkeypatch.setattr(direct, "cached_bytes", lambda *_: 0)
    with pytest.raises(Corrupt) as caught:
        store.read_into("a", offset_bytes=0, into=new_bounce()[: len(BIG) + 4096])
    assert caught.value.code == "truncated"


@pytest.mark.parametrize(
    ("cached", "share"), [((100, 100), 1.0), ((100, 50), 0.75), ((0, None), 0.0), ((4096, 0), 0.5)]
)
def test_how_much_of_some_ranges_the_page_cache_holds(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, cached: tuple[int, int | None], share: float
) -> None:
    """The kernel counts whole pages, and may tell nothing."""
    held = iter(cached)
    asked: list[tuple[int, int]] = []
    _write(store, "steps/1/w/c")
    _write(store, "steps/1/v/c")

    def answer(_fd: int, offset_bytes: int, num_bytes: int) -> int | None:
        asked.append((offset_bytes, num_bytes))
        return next(held)

    monkeypatch.setattr(local, "cached_bytes", answer)
    assert store.cached_share([("steps/1/w/c", 0, 100), ("steps/1/v/c", 40, 100)]) == share
    assert asked == [(0, 100), (40, 100)]


def test_the_page_cache_holds_nothing_of_nothing_and_a_missing_file_is_told(store: LocalStore) -> None:
    assert store.cached_share([]) == 0
    with pytest.raises(NotFound, match="steps/1/v/c"):
        store.cached_share([("steps/1/v/c", 0, 100)])


def test_a_folder_of_files_is_named_for_other_processes(store: LocalStore) -> None:
    assert store.folder("steps/1") == os.path.join(store.root, "steps", "1")


def test_what_could_not_be_made_durable_is_told_to_who_seals_it_not_to_who_writes_another_file(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four files may be open: the fifth has the first one made durable, which fails."""
    sync = os.fsync

    def failing(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/file-0"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    keys = [f"file-{number}" for number in range(6)]
    for key in keys:
        store.write_parts(key, size_bytes=len(DATA), parts=[Part(offset_bytes=0, buffers=[DATA])])
    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(Unavailable, match="file-0"):
        store.seal(keys)
    store.seal(keys[1:])


def test_who_seals_a_file_while_another_thread_hears_that_it_is_lost_hears_it_too(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells the loss to the one whose descriptor was open, and a descriptor opened afterwards nothing."""
    sync, main = os.fsync, threading.current_thread()
    with ThreadPoolExecutor(1) as pool:
        sealing: list[Future[None]] = []

        def failing(fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/file-0") and threading.current_thread() is main:
                sealing.append(pool.submit(store.seal, ["file-0"]))
                wait(sealing, timeout=0.2)  # it must not end before this thread has told what it knows
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(fd)

        monkeypatch.setattr(os, "fsync", failing)
        for number in range(5):
            _write(store, f"file-{number}")
    assert isinstance(sealing[0].exception(), Unavailable)


def test_what_became_of_a_deleted_file_is_not_told_of_one_that_is_written_there_afterwards(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, main = os.fsync, threading.current_thread()
    with ThreadPoolExecutor(1) as pool:
        deleting: list[Future[None]] = []

        def failing(fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/file-0") and threading.current_thread() is main:
                deleting.append(pool.submit(store.delete, ["file-0"]))
                wait(deleting, timeout=0.2)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(fd)

        monkeypatch.setattr(os, "fsync", failing)
        for number in range(5):
            _write(store, f"file-{number}")
        monkeypatch.setattr(os, "fsync", sync)
        deleting[0].result()
    _write(store, "file-0")
    store.seal(["file-0"])


def test_who_waits_for_a_file_that_another_thread_never_closes_is_told(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, hanging, may_go_on = os.fsync, threading.Event(), threading.Event()

    def stuck(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/file-0"):
            hanging.set()
            may_go_on.wait(LIMIT_S)
        sync(fd)

    def write_more() -> None:
        for number in range(5):
            _write(store, f"file-{number}")

    monkeypatch.setattr(open_files, "CLOSING_LIMIT_S", 0.05)
    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as here:
        here.setattr(os, "fsync", stuck)
        writing = pool.submit(write_more)
        assert hanging.wait(LIMIT_S)
        try:
            for wait_for in (store.seal, store.delete):
                with pytest.raises(Timeout, match=f"^{store.root}/file-0: expected another thread"):
                    wait_for(["file-0"])
        finally:
            may_go_on.set()
        writing.result(LIMIT_S)
    store.delete(["file-0"])


def test_who_seals_a_file_that_could_not_be_closed_hears_it(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system over the network tells some failures then."""
    close = os.close

    def failing(fd: int) -> None:
        is_lost = os.readlink(f"/proc/self/fd/{fd}").endswith("/file-0")
        close(fd)
        if is_lost:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as here:
        here.setattr(os, "close", failing)
        for number in range(5):
            _write(store, f"file-{number}")
    with pytest.raises(Unavailable, match="file-0"):
        store.seal(["file-0"])


def test_what_is_private_is_its_owners_alone_and_other_folders_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        for name, modes in (("private", (0o700, 0o600)), ("shared", (0o755, 0o644))):
            store = LocalStore(tmp_path / name / "root", is_private=name == "private")
            store.write_parts("a/b/large", size_bytes=1, parts=[Part(offset_bytes=0, buffers=[b"x"])])
            store.create("a/c/small", b"x")
            store.close()
            found = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / name).rglob("*")}
            assert {modes[path.is_file()] == mode for path, mode in found.items()} == {True}
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == modes[0]
    finally:
        os.umask(before)
