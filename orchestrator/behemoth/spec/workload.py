"""What the workers run: a Python function that warm fork servers start, or a command that is started cold.

Only the values and their rules live here; how a worker is started is the business of `behemoth.agent`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeAlias

from behemoth.base.ids import Step
from behemoth.spec.field import About, Integer, Listing, Scalar, Table, Text, require_ranges

ScalarValue: TypeAlias = str | int | float | bool

_MODULE = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"
_RESERVED_PREFIXES = ("BEHEMOTH_", "TORCHELASTIC_")
_TORCHRUN_NAMES = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_NAME",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    }
)
"""What torchrun sets (PyTorch, "Environment Variables" of torch.distributed.run), and so do the agents."""


def _refuse_variable(name: str) -> str:
    if name in _TORCHRUN_NAMES or name.startswith(_RESERVED_PREFIXES):
        return f"expected a name that Behemoth does not set itself, got {name}"
    return ""


def _suggest_entrypoint(text: str) -> str:
    """`package.module.function` and `package/module.py:function` are what people write first."""
    module, colon, function = text.removesuffix("()").partition(":")
    module = module.removesuffix(".py").replace("/", ".").strip(".")
    if not colon:
        module, _, function = module.rpartition(".")
    guess = f"{module}:{function}"
    return guess if re.fullmatch(f"{_MODULE}:{_MODULE}", guess) else ""


STEPS = About(doc="Optimizer steps to train in all; the run has succeeded when they are done.", kind=Integer(minimum=1))
ENVIRONMENT = About(
    doc="Environment variables of the workers. BEHEMOTH_*, TORCHELASTIC_* and torchrun's own are refused.",
    kind=Table(
        value=Text(what="text without NUL", pattern=r"[^\0]*"),
        key_what="names of variables",
        key_pattern=r"[A-Za-z_][A-Za-z0-9_]*",
        refuse=_refuse_variable,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonWorkload:
    """A function that every rank calls; restarts are warm."""

    entrypoint: Annotated[
        str,
        About(
            doc="The function that every rank calls. Workers are forked from a warm server, so restarts are fast.",
            kind=Text(what="module:function", pattern=f"{_MODULE}:{_MODULE}", suggest=_suggest_entrypoint),
        ),
    ]
    steps: Annotated[Step, STEPS]
    preload: Annotated[
        tuple[str, ...],
        About(
            doc="Modules that the fork server imports before the first fork; they must not start threads.",
            kind=Listing(item=Text(what="the dotted name of a module", pattern=_MODULE)),
        ),
    ] = ()
    args: Annotated[
        Mapping[str, ScalarValue],
        About(
            doc="Named scalars for the function.",
            kind=Table(value=Scalar(), key_what="identifiers", key_pattern=r"[A-Za-z_][A-Za-z0-9_]*"),
        ),
    ] = field(default_factory=dict)
    environment: Annotated[Mapping[str, str], ENVIRONMENT] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_ranges(self, name="workload")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandWorkload:
    """A program of any kind; restarts are cold."""

    command: Annotated[
        tuple[str, ...],
        About(
            doc="The program that every rank executes, word by word, without a shell. It restarts cold: every recovery "
            "pays for its imports again.",
            kind=Listing(item=Text(what="text without NUL, not empty", pattern=r"[^\0]+"), min_items=1),
        ),
    ]
    steps: Annotated[Step, STEPS]
    environment: Annotated[Mapping[str, str], ENVIRONMENT] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_ranges(self, name="workload")


Workload: TypeAlias = PythonWorkload | CommandWorkload
