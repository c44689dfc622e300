"""Rejection of RL queries by the policy's own samples."""

import pytest
from pydantic import ValidationError

from bi_ray.batches.selection import QueryRow, SelectionError, describe_selection, reject
from bi_ray.config.training import QueryFilterConfig


def samples(right, of=8):
    return [True] * right + [False] * (of - right)


def test_by_default_the_queries_that_can_teach_are_kept():
    """Fig. 11 of arXiv:2505.18917: 1 to 7 of 8 right."""
    rows = reject([(f"q{right}", samples(right)) for right in range(9)], QueryFilterConfig())
    assert rows == [QueryRow(f"q{right}", right, 8, 0 < right < 8) for right in range(9)]
    assert describe_selection(rows, 10, QueryFilterConfig()) == {
        "queries": 10,
        "kept": 7,
        "failed": 1,
        "right": [1] * 9,
    }


def test_the_range_can_be_chosen():
    config = QueryFilterConfig(samples_per_prompt=4, least_right=0, most_right=1)
    rows = reject([(str(right), samples(right, 4)) for right in range(5)], config)
    assert [row.kept for row in rows] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("right", "of", "kept"),
    [(7, 7, False), (6, 7, True), (1, 2, True), (2, 2, False), (0, 5, False)],
)
def test_a_failed_sample_is_neither_right_nor_wrong(right, of, kept):
    """Kept is what has been seen to be right at least once and wrong at least once."""
    assert reject([("q", samples(right, of))], QueryFilterConfig())[0].kept == kept


@pytest.mark.parametrize("right", [0, 8])
def test_a_filter_that_keeps_none_says_what_to_change(right):
    config = QueryFilterConfig()
    rows = reject([(str(i), samples(right)) for i in range(5)], config)
    with pytest.raises(
        SelectionError, match=r"keeps none of 5 queries.*Make task.sets.rl easier or harder"
    ):
        describe_selection(rows, 5, config)


@pytest.mark.parametrize("options", [{"least_right": 8}, {"most_right": 0}, {"most_right": 9}])
def test_a_range_that_is_none_is_refused(options):
    with pytest.raises(ValidationError, match="expected least_right <= most_right"):
        QueryFilterConfig(**options)
