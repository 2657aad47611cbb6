"""Patterns say of every name what the shell's rules say of each by itself."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from behemoth.checkpoint.name_patterns import NamePatterns

NAMES = st.text("ab/.[*?!]{1}\n", max_size=5)


@given(patterns=st.lists(NAMES, max_size=5), names=st.lists(NAMES, max_size=8))
def test_together_they_match_what_any_of_them_matches_alone(patterns: list[str], names: list[str]) -> None:
    several = NamePatterns(patterns)
    for name in names:
        assert several.has(name) == any(fnmatchcase(name, one) for one in patterns)
    assert several.unused(names) == [one for one in patterns if not any(fnmatchcase(name, one) for name in names)]


def test_thousands_of_plain_names_are_held_against_as_many_without_a_comparison_of_each_pair() -> None:
    names = [f"optim/exp_avg/layers.{number}.w" for number in range(200_000)]
    several = NamePatterns(names)
    assert several.unused(names) == []
    assert not several.has("optim/exp_avg/layers.200000.w")
