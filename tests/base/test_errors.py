from __future__ import annotations

import pickle

import pytest

from behemoth.base import errors
from behemoth.base.errors import BehemothError, Conflict

# Frozen: scripts and handlers rely on these names, bases and codes. Append, never change.
TREE: dict[str, tuple[tuple[type[BaseException], ...], str]] = {
    "BehemothError": ((Exception,), "error"),
    "Invalid": ((BehemothError, ValueError), "invalid"),
    "NotFound": ((BehemothError, LookupError), "not-found"),
    "Conflict": ((BehemothError,), "conflict"),
    "Denied": ((BehemothError,), "denied"),
    "Unavailable": ((BehemothError,), "unavailable"),
    "Corrupt": ((BehemothError,), "corrupt"),
    "Timeout": ((BehemothError, TimeoutError), "timeout"),
    "Internal": ((BehemothError,), "internal"),
}


def _kinds() -> dict[str, type[BehemothError]]:
    members = vars(errors).items()
    return {name: kind for name, kind in members if isinstance(kind, type) and issubclass(kind, BehemothError)}


def test_the_tree_is_the_frozen_one() -> None:
    assert {name: (kind.__bases__, kind.default_code) for name, kind in _kinds().items()} == TREE


@pytest.mark.parametrize("name", TREE)
def test_an_error_survives_pickling_whole(name: str) -> None:
    error = _kinds()[name]("shard 3: expected 5 B, got 4 B", hint="save again", code="short-shard")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes, made on this line
    assert type(again) is type(error)
    assert (str(again), again.message, again.hint, again.code) == (
        str(error),
        error.message,
        "save again",
        "short-shard",
    )
    assert again.args == error.args


@pytest.mark.parametrize("name", TREE)
def test_an_error_without_a_code_has_that_of_its_class(name: str) -> None:
    error = _kinds()[name]("x: expected y, got z")
    assert (str(error), error.code, error.hint) == ("x: expected y, got z", TREE[name][1], "")


def test_an_error_that_is_told_of_what_is_around_keeps_all_but_its_words() -> None:
    found = Conflict("expected none, got one", hint="remove it", code="taken").within("node n1")
    assert (type(found), str(found)) == (Conflict, "node n1: expected none, got one")
    assert (found.message, found.hint, found.code) == (str(found), "remove it", "taken")
