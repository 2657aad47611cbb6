"""Completions of arguments and options, for the shell to offer.

Asked at every TAB, so nothing here reads more than names, or imports more than it must. What is offered are plain words
only, since shells evaluate what they are told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import typer

from behemoth_cli.context import PREFIX, run_paths
from behemoth_cli.out.console import Format

Candidates = Callable[[str], list[str]]
"""From the beginning of a word to the words that it may become."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def one_of(*words: str) -> Candidates:
    """A choice that is known beforehand."""

    def candidates(incomplete: str) -> list[str]:
        return _begun(words, incomplete)

    return candidates


def kinds(types: dict[str, str]) -> Candidates:
    """Types by the name that they are listed under; by another one that leads there when only that one fits."""

    def candidates(incomplete: str) -> list[str]:
        return _begun(dict.fromkeys(types.values()), incomplete) or _begun(types, incomplete)

    return candidates


def run_names(incomplete: str) -> list[str]:
    """Runs under ./runs: NAME, or run/NAME once one has begun to write that."""
    names = [path.name for path in run_paths() if _PLAIN.fullmatch(path.name)]
    return _begun([*names, *(f"{PREFIX}{name}" for name in names if incomplete)], incomplete)


def field_paths(incomplete: str) -> list[str]:
    """Fields of the run file."""
    from behemoth.spec.schema import explain, walk

    return _begun((doc.path for doc in walk(explain()) if doc.path), incomplete)


def output_option(*formats: Format, help: str | None = None) -> Any:
    """The option `-o` of a verb that has these formats."""
    return typer.Option("-o", metavar="|".join(formats), help=help, autocompletion=one_of(*formats))


def _begun(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
