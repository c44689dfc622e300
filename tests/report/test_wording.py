from pathlib import Path

import pytest
from report_run import config_of, iv, measured

from bi_ray.report.influence import correlation_text
from bi_ray.report.source import Source
from bi_ray.report.wording import (
    answer,
    before_after,
    named,
    percent_range,
    points,
    sign,
    small,
    triple,
)


def source(difference, seeds=3, **more):
    config = config_of()
    row = {"arm": "bridge", "against": "vanilla", "set": "test_id", "difference": difference}
    summary = {"difference_of_gains": [row], "table": [], "seeds": seeds, **more}
    return Source("small", config, (Path("run"),), summary)


def test_numbers_in_words():
    assert points(0.415) == "41.5"
    assert points(-0.031, signed=True) == "−3.1"
    assert small(0.0001234567) == "0.000123"
    assert percent_range([0.1, -0.05, 0.2], signed=True) == "−5.0 to +20.0"
    assert triple(iv(0.5, 0.1)) == pytest.approx((0.5, 0.4, 0.6))
    assert before_after(0.3, None) == "30 → –"
    assert before_after(1.234, 2, percent=False) == "1.23 → 2.00"
    assert named(list("abcdefghij"), most=3) == "a, b, c and 7 more"
    assert named(["a"]) == "a"


@pytest.mark.parametrize(
    ("interval", "expected"), [(iv(1, 0.5), 1), (iv(-1, 0.5), -1), (iv(0.1, 0.5), 0)]
)
def test_an_interval_is_beyond_chance_where_it_leaves_zero_out(interval, expected):
    assert sign(interval) == expected


def test_the_answer_says_which_way_it_went_and_whether_that_is_chance():
    assert answer(source(iv(0.032, 0.02))) == [
        "On test_id, RL gained 3.2 points more with bridge than with vanilla, +1.2 to +5.2 at 95 %: beyond chance."
    ]
    assert "gained 3.2 points less with bridge" in answer(source(iv(-0.032, 0.02)))[0]
    chance = answer(source(iv(0.032, 0.05)))[0]
    assert chance.startswith("On test_id, no difference beyond chance")
    assert "beyond chance." not in chance.partition("chance:")[2]
    assert "This is one seed" in answer(source(iv(0.032, 0.02), seeds=1))[-1]


def test_the_answer_of_one_arm_and_of_none():
    one = source(iv(0, 0), seeds=2)
    row = {"arm": "bridge", "set": "test_id", "gain": [0.05, -0.01, 0.1]}
    one.summary.update(difference_of_gains=[], table=[row])
    assert answer(one) == [
        "On test_id, RL changed the accuracy of bridge by +5.0 points (−1.0 to +10.0): no more than chance."
    ]
    row["gain"] = None
    one.summary["readiness"] = {"bridge": measured(config_of())["readiness"]["bridge"]}
    assert answer(one)[0].startswith("No answer yet")
    assert answer(one)[1].endswith("was 73.3 % (69.3 to 77.3) with bridge.")


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (iv(0.03, 0.01), "it named bridge, rightly."),
        (iv(-0.03, 0.01), "wrongly."),
        (iv(0, 0.01), "do not differ"),
    ],
)
def test_the_forecast_is_held_against_the_outcome(difference, expected):
    found = answer(source(difference, **measured(config_of())))
    assert found[1] == (
        "Before RL, the share of queries that teach anything was 55.0 % (51.0 to 59.0) with vanilla and "
        "73.3 % (69.3 to 77.3) with bridge."
    )
    assert "0.8 (0.7 to 0.9) with vanilla" in found[2]
    assert "2.4 (2.3 to 2.5) with bridge" in found[2]
    assert expected in found[2]


def test_a_forecast_too_close_to_call():
    parts = measured(config_of())
    for arm in ("vanilla", "bridge"):
        parts["readiness"][arm]["influence"]["sum"]["all"]["dj"] = iv(1.0, 0.2)
    assert "too close to call" in answer(source(iv(0.03, 0.01), **parts))[2]


def test_a_forecast_along_noise_says_so():
    parts = {"readiness": measured(config_of())["readiness"]}
    assert "noise" not in answer(source(iv(0.03, 0.01), **parts))[2]
    parts["readiness"]["bridge"]["halves_cosine"]["sum"] = -0.04
    assert (
        "mostly sampling noise, its halves have cosines −0.04 and 0.123"
        in answer(source(iv(0.03, 0.01), **parts))[2]
    )


def test_a_correlation_is_given_only_where_there_is_one():
    found = {
        "noise_floor": 0.004,
        "step_norm": 0.1,
        "correlation": iv(0.72, 0.14),
        "correlation_odd": iv(0.1, 0.2),
    }
    found["controls"] = [{"predicted": 0.05, "odd": 0.04, "odd_low": 0.03, "odd_high": 0.05}]
    assert correlation_text(found).split("; ") == [
        "first order: correlation 0.1 (\N{MINUS SIGN}0.1 to 0.3), no more than chance",
        "step ahead: correlation 0.72 (0.58 to 0.86)",
        "noise floor 0.004, step of norm 0.1",
        "control, along the target's own gradient: predicted 0.05, realized to first order 0.04",
    ]
    for nothing in (None, iv(float("nan"), 0)):
        assert "step ahead: no correlation can be given" in correlation_text(
            found | {"correlation": nothing}
        )
