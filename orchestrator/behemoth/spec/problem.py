"""What is wrong with a run file: every problem at once, each with the path of its field.

A person who fixes a file wants the whole list, not the first line of it. Which rules there are is the business of
`behemoth.spec.decode` (each field alone) and `behemoth.spec.run` (fields together).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from behemoth.base.errors import Invalid

Mark = tuple[int, int]
"""Line and column of a text, both from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One refusal: `reason` says what was expected and what was got."""

    path: str
    """Field path such as `spec.mesh.ep`; empty for the document as a whole."""
    reason: str
    hint: str = ""
    code: str = "invalid-run"
    mark: Mark | None = None
    """Where in the text, when it came from one."""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class InvalidRun(Invalid):
    """The run was refused; `problems` holds every reason. One problem is one sentence, several are a line each."""

    default_code: ClassVar[str] = "invalid-run"

    def __init__(self, problems: Sequence[Problem], source: str = "") -> None:
        self.problems = tuple(problems)
        self.source = source
        codes = {problem.code for problem in self.problems}
        super().__init__(
            _message(self.problems, source), hint=_hint(self.problems), code=min(codes) * (len(codes) == 1)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (InvalidRun, (self.problems, self.source))


def placed(problem: Problem, marks: Mapping[str, Mark]) -> Problem:
    """The same problem with the place of its field in the text, or that of the nearest field around it."""
    if problem.mark is not None:
        return problem
    path = problem.path
    while path and path not in marks:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return Problem(path=problem.path, reason=problem.reason, hint=problem.hint, code=problem.code, mark=marks.get(path))


def _message(problems: Sequence[Problem], source: str) -> str:
    if len(problems) == 1:
        (problem,) = problems
        place = [source, *(str(number) for number in problem.mark or ())]
        return ": ".join(part for part in (":".join(place).lstrip(":"), str(problem)) if part)
    head = f"{source or 'run'}: expected a valid run, got {len(problems)} problems"
    return "\n".join([head, *(f"  {_line(problem)}" for problem in problems)])


def _line(problem: Problem) -> str:
    place = f"line {problem.mark[0]}: " if problem.mark else ""
    return f"{place}{problem}" + (f" ({problem.hint})" if problem.hint else "")


def _hint(problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        return problems[0].hint
    return "`behemoth explain FIELD` tells what a field takes"
