"""A checkpoint that gc deletes while a verb reads it: the verb has everything by then, or says that it is gone; what it
writes is whole or has no name and no commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.interop.export import INDEX
from behemoth.checkpoint.pins import pin
from behemoth.checkpoint.verify import verify
from behemoth.ports import Into, ObjectStore
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from behemoth.storage.open import open_store
from behemoth.storage.s3_objects import S3Objects
from behemoth.testing.store import MemoryStore, read
from behemoth_cli import root
from checkpoint.saved_checkpoint import save, small_layout
from servers.s3_server import S3Server
from storage.s3_stores import let_in, new_place, opened

OLDEST = CommitRef(step=Step(10), write_id=WriteId("a1-10"), size_bytes=0)
GONE = ("checkpoint-not-found", "commit-gone", "checkpoint-gone", "was deleted while it was read")
"""Codes of errors, and what verify notes."""


@dataclass
class Beside:
    """Before the `number`-th read of a store at `url` something else is done, once."""

    url: str = ""
    number: int = -1
    num_reads: int = 0
    meanwhile: Callable[[ObjectStore], object] = field(default=lambda _store: None)

    def before_a_read(self, store: LocalStore | S3Objects) -> None:
        if str(store.root) != self.url:
            return
        self.num_reads += 1
        if self.num_reads == self.number:
            with closing(open_store(self.url)) as own:
                self.meanwhile(own)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Beside:
    found = Beside()
    for kind in (LocalStore, S3Objects):
        real = kind.read_into

        def read_into(
            self: LocalStore | S3Objects, key: str, *, offset_bytes: int, into: Into, real: object = real
        ) -> None:
            found.before_a_read(self)
            real(self, key, offset_bytes=offset_bytes, into=into)  # type: ignore[operator]

        monkeypatch.setattr(kind, "read_into", read_into)
    return found


def deletes(store: ObjectStore) -> None:
    execute(store, plan_gc(store, drop=[OLDEST]))


@pytest.fixture(scope="module")
def saved() -> MemoryStore:
    """Three checkpoints, of which gc may take the oldest."""
    store = MemoryStore()
    for step in (10, 20, 30):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    return store


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.longer)])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Where no store is yet; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    if request.param == "folder":
        yield str(tmp_path / "stores")
        return
    let_in(monkeypatch, s3)
    with opened(new_place()) as store:
        yield store.root


def copy_of(saved: MemoryStore, url: str) -> None:
    with closing(open_store(url)) as store:
        for info in saved.list(""):
            store.create(info.key, read(saved, info.key, info.size_bytes))


def objects(url: str) -> dict[str, bytes]:
    with closing(open_store(url)) as store:
        return {info.key: read(store, info.key, info.size_bytes) for info in store.list("")}


EXPORT = ("export", "--max-file-size", "64B", "--to")
VERBS: dict[str, Sequence[str]] = {
    "export": EXPORT,
    "export on one thread": ("export", "--threads", "1", "--max-file-size", "64B", "--to"),
    "reshard": ("reshard", "--mesh", "dp=3", "--to"),
    "drain": ("drain", "--to"),
    "verify": ("verify",),
    "rehearse": ("rehearse", "--mesh", "dp=3"),
    "show": ("show", "--digest"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_read_all_of_a_checkpoint_that_gc_deletes_meanwhile_or_says_that_it_is_gone(
    saved: MemoryStore, place: str, beside: Beside, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    name, *options = VERBS[verb]

    def run(number: int) -> tuple[int, str, str]:
        beside.url, beside.number, beside.num_reads = f"{place}/given-{number}", number, 0
        copy_of(saved, beside.url)
        to = [f"{place}/made-{number}"] if options[-1:] == ["--to"] else []
        code = root.run(["ckpt", name, beside.url, "--step", "10", *options, *to])
        return code, f"{place}/made-{number}", capsys.readouterr().err

    code, made, err = run(-1)
    assert code == 0, err
    whole, num_reads = objects(made), beside.num_reads
    beside.meanwhile = deletes
    codes = set()
    every = 1 if name == "verify" else max(1, num_reads // 6)  # a worker opens the checkpoint at one of its reads
    for number in sorted({*range(1, num_reads + 1, every), num_reads}):
        code, made, err = run(number)
        codes.add(code)
        assert code == 0 or any(words in err for words in GONE), (number, code, err)
        assert "Traceback" not in err
        expect_whole_or_none(name, objects(made), made, whole, is_done=code == 0)
    assert codes - {0} or name == "verify"


def expect_whole_or_none(
    name: str, found: dict[str, bytes], made: str, whole: dict[str, bytes], *, is_done: bool
) -> None:
    if name == "export":
        assert found.items() <= whole.items()
        assert not is_done or found.keys() == whole.keys()
        assert INDEX not in found or found.keys() == whole.keys()
    if name in ("reshard", "drain"):
        with closing(open_store(made)) as store:
            standing = commits(store)
            assert len(standing) == (1 if is_done else 0)
            assert all(verify(store, one, threads=1, deep=True).is_intact for one in standing)


def test_a_checkpoint_that_was_pinned_before_gc_came_is_read_to_the_end(
    saved: MemoryStore, place: str, beside: Beside, capsys: pytest.CaptureFixture[str]
) -> None:
    beside.url, beside.meanwhile = f"{place}/given", deletes
    copy_of(saved, beside.url)
    with closing(open_store(beside.url)) as store:
        pin(store, OLDEST, reason="it is read", at_us=0)
    name, *options = EXPORT
    command = ["ckpt", name, beside.url, "--step", "10", *options]
    assert root.run([*command, f"{place}/first"]) == 0
    beside.number, beside.num_reads = beside.num_reads // 2, 0
    assert root.run([*command, f"{place}/second"]) == 0, capsys.readouterr().err
    assert objects(f"{place}/second") == objects(f"{place}/first")
