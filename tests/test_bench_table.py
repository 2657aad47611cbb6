"""The arithmetic of benchmark rows."""

import pytest
from bench_table import MIN_PAIRS, alone, alternate, beside, interval, not_run, with_goal


def test_few_samples_give_all_of_them_as_interval() -> None:
    of = interval([3.0, 1.0, 2.0])
    assert (of.low, of.median, of.high) == (1.0, 2.0, 3.0)


def test_twenty_samples_leave_out_five_at_each_end() -> None:
    # Binomial(20, 1/2): P(X <= 5) = 0.0207, so the interval is [x(6), x(15)] (Conover 1999, table A3)
    of = interval([float(value) for value in range(1, 21)])
    assert (of.low, of.median, of.high) == (6.0, 10.5, 15.0)


def test_a_ratio_is_the_median_of_pairs_not_the_ratio_of_medians() -> None:
    row = beside("save", "s", [1.0, 2.0, 9.0], "peer", [2.0, 2.0, 3.0])
    assert (row.ours, row.peer_value, row.ratio) == (2.0, 2.0, 1.0)
    assert (row.ratio_low, row.ratio_high) == (0.5, 3.0)


def test_a_row_without_a_peer_has_no_ratio() -> None:
    assert alone("stage", "s", [1.0]).ratio is None


def judged(ratios: list[float], goal: float, *, is_upper: bool = False) -> str | None:
    return with_goal(beside("save", "GB/s", ratios, "raw", [1.0] * len(ratios)), goal, is_upper=is_upper).verdict


@pytest.mark.parametrize(
    ("ratios", "goal", "verdict"),
    [
        ([1.1] * MIN_PAIRS, 1.0, "met"),
        ([0.9] * MIN_PAIRS, 1.0, "missed"),
        ([0.8, 1.2] * MIN_PAIRS, 1.0, "not resolved"),
        ([1.0] * MIN_PAIRS, 1.0, "not resolved"),
        ([1.1] * (MIN_PAIRS - 1), 1.0, "too few pairs"),
    ],
)
def test_a_goal_is_met_only_by_an_interval_that_lies_above_it(ratios: list[float], goal: float, verdict: str) -> None:
    assert judged(ratios, goal) == verdict


def test_an_upper_goal_is_met_from_below() -> None:
    assert judged([0.9] * MIN_PAIRS, 1.0, is_upper=True) == "met"
    assert judged([1.1] * MIN_PAIRS, 1.0, is_upper=True) == "missed"


def test_a_row_without_a_peer_cannot_have_a_goal() -> None:
    with pytest.raises(ValueError, match="'stage'"):
        with_goal(alone("stage", "s", [1.0]), 1.0)


def test_a_peer_that_cannot_run_keeps_its_row_and_says_why() -> None:
    row = not_run("save", "GB/s", [2.0], "orbax", why="No module named 'orbax'")
    assert (row.peer, row.verdict, row.note, row.ratio) == ("orbax", "not run", "No module named 'orbax'", None)


def test_contenders_take_turns_and_the_first_round_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def contender(name: str) -> dict[str, float]:
        order.append(name)
        return {"save": float(len(order))}

    samples = alternate({"a": lambda: contender("a"), "b": lambda: contender("b")}, num_rounds=2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert samples == {"a": {"save": [3.0, 6.0]}, "b": {"save": [4.0, 5.0]}}
    assert "round 2 of 2" in capsys.readouterr().err
