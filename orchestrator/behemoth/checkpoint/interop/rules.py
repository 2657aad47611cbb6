"""Name and layout maps: which of our arrays become which tensors of another format, and back.

A map is a value and pure; applied, it gives lazy tensors and reads nothing. Nothing is guessed: an array without a
rule, a rule that finds only some of its arrays, and two arrays for one name are errors. Neighbours: `map_file` (the
document), `steps` (the changes of layout), `sizes`, `patterns`.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass

from behemoth.base.errors import Invalid
from behemoth.checkpoint.interop.patterns import Pattern
from behemoth.checkpoint.interop.sizes import Named, NamedSize, check_sizes, measured
from behemoth.checkpoint.interop.steps import Concat, Rows, Split, Stack, Step, Unstack, sizes_of
from behemoth.checkpoint.interop.tensors import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """All tensors that match `sources` with the same words become those of `targets`, changed by `steps` in order.

    With `beside` only where there is a tensor of that name, with the same words, too; `beside_back` is that of the
    other direction."""

    sources: tuple[Pattern, ...]
    targets: tuple[Pattern, ...]
    steps: tuple[Step, ...] = ()
    beside: Pattern | None = None
    beside_back: Pattern | None = None

    def __post_init__(self) -> None:
        if not self.sources or not self.targets:
            raise Invalid(f"{self.text}: expected a name on each side", code="map-rule")
        num_names, over_source, over_target = len(self.sources), "", ""
        for step in self.steps:
            match step:
                case Split():
                    num_names = self._required(num_names, 1, len(step.sizes), "split")
                case Concat():
                    num_names = self._required(num_names, len(step.sizes), 1, "concat")
                case Stack(over=over):
                    over_source = self._one_word(over_source or over_target, over)
                case Unstack(over=over):
                    over_target = self._one_word(over_source or over_target, over)
                case _:
                    pass
        if num_names != len(self.targets):
            raise Invalid(
                f"{self.text}: expected steps that give {len(self.targets)} tensors, got {num_names}", code="map-rule"
            )
        self._check_words(over_source, over_target)

    @property
    def text(self) -> str:
        """For messages."""
        return rule_text(self.sources, self.targets)

    @property
    def over(self) -> str:
        """The word of the sources over which they are stacked; empty when they are not."""
        return next((step.over for step in self.steps if isinstance(step, Stack)), "")

    def inverse(self) -> Rule:
        """Targets become sources."""
        back = tuple(step.inverse() for step in reversed(self.steps))
        return Rule(
            sources=self.targets,
            targets=self.sources,
            steps=back,
            beside=self.beside_back,
            beside_back=self.beside,
        )

    def check_sizes(self, names: Collection[str]) -> None:
        """Raises Invalid for a size that says nothing; `names` are those of the map."""
        try:
            for step in self.steps:
                check_sizes(sizes_of(step), names)
        except Invalid as error:
            raise Invalid(f"{self.text}: {error.message}", hint=error.hint, code=error.code) from error

    def _required(self, got: int, expected: int, then: int, what: str) -> int:
        if got != expected:
            raise Invalid(f"{self.text}: expected {expected} tensors for {what}, got {got}", code="map-rule")
        return then

    def _one_word(self, before: str, over: str) -> str:
        if before:
            raise Invalid(f"{self.text}: expected one stack or unstack, got a second over {over!r}", code="map-rule")
        return over

    def _check_words(self, over_source: str, over_target: str) -> None:
        """Every pattern has the same words, but for the one that a stack takes or an unstack gives."""
        common = self.sources[0].fields - {over_source}
        for patterns, over in ((self.sources, over_source), (self.targets, over_target)):
            for pattern in patterns:
                if pattern.fields != common | ({over} if over else frozenset()):
                    raise Invalid(
                        f"{self.text}: expected the words {sorted(common | ({over} if over else set()))} in "
                        f"{pattern.text!r}, got {sorted(pattern.fields)}",
                        hint="all names of a rule have the same words, but for the one that a stack or unstack counts",
                        code="map-words",
                    )
        for beside in (self.beside, self.beside_back):
            if beside is not None and not beside.fields <= common:
                raise Invalid(
                    f"{self.text}: expected words of {sorted(common)} in {beside.text!r}, got {sorted(beside.fields)}",
                    code="map-words",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class NameMap:
    """Rules in order, of which the first that matches counts. What matches `dropped` is left out; `dropped_back` is
    that of the other direction. With `drops_others` so is, either way, what no rule matches. `unscaled` are target
    names that stay bfloat16 in a float8 export. `sizes` are those that steps name. `digest` names the document that it
    came from."""

    rules: tuple[Rule, ...]
    dropped: tuple[Pattern, ...] = ()
    dropped_back: tuple[Pattern, ...] = ()
    drops_others: bool = False
    unscaled: tuple[Pattern, ...] = ()
    sizes: tuple[NamedSize, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        names = {size.name for size in self.sizes}
        for rule in self.rules:
            rule.check_sizes(names)

    def inverse(self) -> NameMap:
        """The way back."""
        return NameMap(
            rules=tuple(rule.inverse() for rule in self.rules),
            dropped=self.dropped_back,
            dropped_back=self.dropped,
            drops_others=self.drops_others,
            sizes=tuple(size.inverse() for size in self.sizes),
            digest=self.digest,
        )

    def is_unscaled(self, name: str) -> bool:
        return _matches(self.unscaled, name)

    def apply(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Lazy tensors under their new names, in the order in which their first sources came. Raises Invalid naming
        rule and tensor."""
        groups: dict[tuple[int, tuple[tuple[str, str], ...]], _Group] = {}
        for name, tensor in tensors.items():
            match = None if _matches(self.dropped, name) else self._rule_of(name, tensors)
            if match is None:
                continue
            number, column, words = match
            index = words.pop(self.rules[number].over, "")
            key = (number, tuple(sorted(words.items())))
            group = groups.setdefault(key, _Group(rule=self.rules[number], words=words, members={}))
            group.members[column, _index_of(name, group.rule, index)] = tensor
        found: dict[str, Tensor] = {}
        makers: dict[str, Rule] = {}
        named = measured(self.sizes, tensors)
        for group in groups.values():
            for name, tensor in group.results(named):
                if name in found:
                    one, other = makers[name].text, group.rule.text
                    raise Invalid(f"tensor {name!r}: expected one source, got {one} and {other}", code="map-twice")
                found[name], makers[name] = tensor, group.rule
        return found

    def _rule_of(self, name: str, names: Container[str]) -> tuple[int, int, dict[str, str]] | None:
        for number, rule in enumerate(self.rules):
            for column, pattern in enumerate(rule.sources):
                words = pattern.match(name)
                if words is not None and (rule.beside is None or rule.beside.fill(words) in names):
                    return number, column, words
        if self.drops_others:
            return None
        raise Invalid(
            f"tensor {name!r}: expected a rule of the map for it, got none",
            hint="add a rule, or a pattern under drop; or leave it out with --select",
            code="map-no-rule",
        )


def rule_text(sources: Sequence[Pattern], targets: Sequence[Pattern]) -> str:
    """How messages call a rule."""
    return "rule " + " -> ".join(
        ", ".join(pattern.text for pattern in side) or "nothing" for side in (sources, targets)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """What one application of a rule has: tensors by column of its sources and number in the stack."""

    rule: Rule
    words: dict[str, str]
    members: dict[tuple[int, int], Tensor]

    def results(self, named: Named) -> list[tuple[str, Tensor]]:
        rows = self._rows()
        try:
            for step in self.rule.steps:
                rows = step.apply(rows, named)
        except Invalid as error:
            name = self.rule.sources[0].fill({self.rule.over: "*", **self.words})
            message = f"tensor {name!r}, {self.rule.text}: {error.message}"
            raise Invalid(message, hint=error.hint, code=error.code) from error
        over = next((step.over for step in self.rule.steps if isinstance(step, Unstack)), "")
        return [
            (pattern.fill({**self.words, over: str(number)}), tensor)
            for pattern, row in zip(self.rule.targets, rows, strict=True)
            for number, tensor in enumerate(row)
        ]

    def _rows(self) -> Rows:
        rows: Rows = []
        for column, pattern in enumerate(self.rule.sources):
            num_stacked = 1 + max((number for at, number in self.members if at == column), default=0)
            row = [self.members.get((column, number)) for number in range(num_stacked)]
            if None in row:
                name = pattern.fill({**self.words, self.rule.over: str(row.index(None))})
                raise Invalid(
                    f"tensor {name!r}: expected it beside the others of the {self.rule.text}, got none",
                    code="map-incomplete",
                )
            rows.append([tensor for tensor in row if tensor is not None])
        return rows


def _matches(patterns: Sequence[Pattern], name: str) -> bool:
    return any(pattern.match(name) is not None for pattern in patterns)


def _index_of(name: str, rule: Rule, index: str) -> int:
    if not rule.over:
        return 0
    if not (index.isascii() and index.isdigit() and len(index) <= 6 and str(int(index)) == index):
        raise Invalid(
            f"tensor {name!r}: expected a number for {rule.over!r} of the {rule.text}, got {index!r}", code="map-stack"
        )
    return int(index)
