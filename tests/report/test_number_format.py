import pytest
from pydantic import TypeAdapter
from report_run import config_of, iv, measured, with_measured

from bi_ray.intervals import Interval
from bi_ray.report.influence import correlation_text
from bi_ray.report.number_format import (
    before_after,
    named,
    percent_range,
    points,
    small,
    small_interval,
)
from bi_ray.report.readiness import RealizedSummary
from bi_ray.report.scores import StageSummary, TableRow
from bi_ray.report.sentences import advice, answer, controls, findings
from bi_ray.report.summary import Control, GainDifference, Summary


def summary(difference, seeds=3, table=(), **parts):
    """A summary with one difference of gains, if there is one."""
    rows = []
    if difference is not None:
        rows = [GainDifference("bridge", "vanilla", "test_id", Interval(**difference))]
    plain = Summary("small", seeds, [], list(table), rows)
    return with_measured(plain, parts)


def row_of(gain, informative=None):
    sft = StageSummary(Interval(0.4, 0.3, 0.5), {}, informative, 0.0, 1.0, None, 0)
    return TableRow("bridge", "test_id", 2, 100, sft, sft, gain)


def test_numbers_in_words():
    assert points(0.415) == "41.5"
    assert points(-0.031, signed=True) == "−3.1"
    assert small(0.0001234567) == "0.000123"
    assert percent_range(Interval(0.1, -0.05, 0.2), signed=True) == "−5.0 to +20.0"
    assert small_interval(Interval(0.1, -0.05, 0.2)) == "0.1 (−0.05 to 0.2)"
    assert before_after(0.3, None) == "30 → –"
    assert before_after(1.234, 2, percent=False) == "1.23 → 2.00"
    assert named(list("abcdefghij"), most=3) == "a, b, c and 7 more"
    assert named(["a"]) == "a"


@pytest.mark.parametrize(
    ("interval", "expected"), [(iv(1, 0.5), 1), (iv(-1, 0.5), -1), (iv(0.1, 0.5), 0)]
)
def test_an_interval_is_beyond_chance_where_it_leaves_zero_out(interval, expected):
    assert Interval(**interval).sign == expected


def test_the_answer_says_which_way_it_went_and_whether_that_is_chance():
    assert answer(summary(iv(0.032, 0.02))) == [
        "On test_id, RL gained 3.2 points more with bridge than with vanilla, +1.2 to +5.2 at "
        "95 %: beyond chance."
    ]
    assert "gained 3.2 points less with bridge" in answer(summary(iv(-0.032, 0.02)))[0]
    chance = answer(summary(iv(0.032, 0.05)))[0]
    assert chance.startswith("On test_id, no difference beyond chance")
    assert "beyond chance." not in chance.partition("chance:")[2]
    assert "This is one seed" in answer(summary(iv(0.032, 0.02), seeds=1))[-1]


def test_the_answer_of_one_arm_and_of_none():
    one = summary(None, seeds=2, table=[row_of(Interval(0.05, -0.01, 0.1))])
    assert answer(one) == [
        "On test_id, RL changed the accuracy of bridge by +5.0 points (−1.0 to +10.0): "
        "not more than chance."
    ]
    readiness = {"bridge": measured(config_of())["readiness"]["bridge"]}
    none = summary(None, seeds=2, table=[row_of(None)], readiness=readiness)
    assert answer(none)[0].startswith("No answer yet")
    assert answer(none)[1].endswith("was 73.3 % (69.3 to 77.3) with bridge.")


def test_the_findings_are_the_answer_and_what_there_is_without_rl():
    found = Summary(
        "small",
        3,
        [],
        [row_of(Interval(0.05, 0.01, 0.1))],
        base_model=[Control("base", "test_id", Interval(0.1, 0.05, 0.2))],
        sft_twice_the_budget=[Control("bridge", "test_id", Interval(0.3, 0.2, 0.4))],
        sets={
            "test_id": {"best_constant_accuracy": [0.1, 0.125]},
            "rl": {"best_constant_accuracy": [0.5]},
        },
    )
    assert controls(found) == [
        "base before SFT: 10.0 % (5.0 to 20.0) on test_id.",
        "bridge after twice the SFT budget, without RL: 30.0 % (20.0 to 40.0) on test_id.",
        "Always giving the same answer would score 12.5 % on test_id.",
    ]
    assert findings(found) == answer(found) + controls(found)


def test_few_informative_queries_are_worth_an_advice():
    few = summary(None, table=[row_of(None, informative=0.12)])
    assert "only 12% of the queries of bridge were informative" in advice(few)[0]
    assert len(advice(summary(None, table=[row_of(None, informative=0.5)]))) == 1


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (iv(0.03, 0.01), "it named bridge, rightly."),
        (iv(-0.03, 0.01), "wrongly."),
        (iv(0, 0.01), "do not differ"),
    ],
)
def test_the_forecast_is_held_against_the_outcome(difference, expected):
    lines = answer(summary(difference, **measured(config_of())))
    assert lines[1] == (
        "Before RL, the share of queries that teach anything was 55.0 % (51.0 to 59.0) with "
        "vanilla and 73.3 % (69.3 to 77.3) with bridge."
    )
    assert "0.8 (0.7 to 0.9) with vanilla" in lines[2]
    assert "2.4 (2.3 to 2.5) with bridge" in lines[2]
    assert expected in lines[2]


def test_a_forecast_too_close_to_call():
    parts = measured(config_of())
    for arm in ("vanilla", "bridge"):
        parts["readiness"][arm]["influence"]["sum"]["all"]["dj"] = iv(1.0, 0.2)
    assert "too close to call" in answer(summary(iv(0.03, 0.01), **parts))[2]


def test_a_forecast_along_noise_says_so():
    parts = {"readiness": measured(config_of())["readiness"]}
    assert "noise" not in answer(summary(iv(0.03, 0.01), **parts))[2]
    parts["readiness"]["bridge"]["halves_cosine"]["sum"] = -0.04
    assert (
        "mostly sampling noise, the cosines between its halves are −0.04 and 0.123"
        in answer(summary(iv(0.03, 0.01), **parts))[2]
    )


def realized_summary(**changes):
    control = {"predicted": 0.05, "realized": 0.06, "low": 0.05, "high": 0.07, "seed": 0}
    control |= {"odd": 0.04, "odd_low": 0.03, "odd_high": 0.05}
    content = {
        "points": [],
        "noise_floor": 0.004,
        "correlation": iv(0.72, 0.14),
        "correlation_odd": iv(0.1, 0.2),
        "controls": [control],
        "step_norm": 0.1,
    }
    return TypeAdapter(RealizedSummary).validate_python(content | changes)


def test_a_correlation_is_given_only_where_there_is_one():
    assert correlation_text(realized_summary()).split("; ") == [
        "first order: correlation 0.1 (\N{MINUS SIGN}0.1 to 0.3), not more than chance",
        "step ahead: correlation 0.72 (0.58 to 0.86)",
        "noise floor 0.004, step of norm 0.1",
        "control, along the target's own gradient: predicted 0.05, realized to first order 0.04",
    ]
    for nothing in (None, iv(float("nan"), 0)):
        text = correlation_text(realized_summary(correlation=nothing))
        assert "step ahead: too few or equal points for a correlation" in text
