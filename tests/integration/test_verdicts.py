"""A reward function that does not work stops the run with one line; mended, the run resumes."""

import os

import pytest
from datasets import load_from_disk

from tests.integration.test_pipeline import assert_one_error, config, finish, metrics, start, write

__all__ = ["config"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

RAISES = """
def reward(question, answer, response):
    raise LookupError("no table of rewards")
"""
RAISES_IN_RL = """
QUESTIONS = {questions!r}
def reward(question, answer, response):
    if question in QUESTIONS:
        raise LookupError("not of this question")
    return float(len(response) % 2)
"""
WORKS = """
def reward(question, answer, response):
    return float(len(response) % 2)
"""


def test_a_reward_function_that_never_works_stops_the_run_until_it_is_mended(
    config, tmp_path, monkeypatch
):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    rl = {
        "steps": 1,
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "optimizer": {"learning_rate": 1e-3},
    }
    changes = {
        "readiness": {"queries": 0},
        "rl": rl,
        "verifier": {"reward_function": "mended_rewards:reward"},
    }
    config_file, run = write(config | changes, tmp_path / "config.yaml"), tmp_path / "run"
    module = tmp_path / "mended_rewards.py"

    module.write_text(RAISES)
    place = f"LookupError: no table of rewards ({module}:3)"
    assert_one_error(start(config_file, run), place)
    assert not (run / "eval_sft/bridge").exists()

    module.write_text(
        RAISES_IN_RL.format(questions=set(load_from_disk(str(run / "data/rl"))["question"]))
    )
    reason = (
        "could be judged: the reward function raised LookupError: "
        f"not of this question ({module}:5)"
    )
    assert_one_error(start(config_file, run), reason)
    assert (run / "eval_sft/bridge/stage.json").exists()
    assert not (run / "rl/bridge").exists()

    module.write_text(WORKS)
    code, output = finish(start(config_file, run))
    assert code == 0, output
    assert "sft/bridge: already done" in output
    assert [row["step"] for row in metrics(run / "rl/bridge")] == [1]
