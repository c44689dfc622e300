"""How a group joins and publishes, and what every rank raises where the driver refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from bi_ray.config.training import RLConfig
from bi_ray.learning import rl
from bi_ray.learning.learner import TrainingError
from bi_ray.learning.rl import JoinError


class Driver:
    def __init__(self, reply):
        self.reply = reply

    def join(self, step):
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


class Directories:
    def recover(self, last_step):
        assert last_step == 9
        return 7


@pytest.fixture
def ranks(monkeypatch):
    """Joins as rank 0, then as another one that gets what rank 0 sent."""
    sent = []

    def join(reply, rank):
        def broadcast(answer):
            if rank == 0:
                sent[:] = answer
            answer[:] = sent

        monkeypatch.setattr(rl.distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(rl.distributed, "broadcast_object_list", broadcast)
        return rl._join(Directories(), 9, Driver(reply))

    return join


def test_every_rank_gets_the_step_and_the_incarnation_of_rank_0(ranks):
    assert ranks(3, 0) == ranks(None, 1) == (7, 3)


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (TrainingError("no RL session is open"), TrainingError, "no RL session is open"),
        (
            RuntimeError("no rollout worker took version 1.0"),
            JoinError,
            "no rollout worker took version 1.0",
        ),
        (TimeoutError(), JoinError, "TimeoutError"),
        (ConnectionError("the driver cannot be reached"), JoinError, "the driver cannot be"),
        (AssertionError("a bug"), TrainingError, "AssertionError: a bug"),
        (KeyError("row"), TrainingError, "KeyError: 'row'"),
    ],
)
def test_a_refusal_ends_the_job_on_every_rank_or_starts_the_group_again(ranks, error, raised, text):
    for rank in (0, 1):
        with pytest.raises(raised, match=f"did not let the learners join: {text}") as caught:
            ranks(error, rank)
        assert type(caught.value) is raised
        assert caught.value.__cause__ is (error if rank == 0 else None)


@pytest.mark.parametrize("ranks", [(0, 1), (0,)])
def test_a_publish_that_fails_for_good_ends_every_rank_before_the_checkpoint(ranks, monkeypatch):
    """A checkpoint takes all ranks: those that began one would wait for rank 0."""
    sent = []

    def broadcast(answer):
        if rl.distributed.get_rank() == 0:
            sent.append(list(answer))
        answer[:] = sent.pop(0) if rl.distributed.get_rank() else answer

    def publish(incarnation, step, path, metrics):
        raise TrainingError("no verdicts")

    checkpointed = len(ranks) > 1
    config = RLConfig(steps=2, checkpoint_every_steps=1 if checkpointed else 2)
    job = SimpleNamespace(config=config, weights=Path("weights"))
    monkeypatch.setattr(rl.distributed, "broadcast_object_list", broadcast)
    monkeypatch.setattr(rl, "publish_weights", lambda weights, path: None)
    for rank in ranks:
        monkeypatch.setattr(rl.distributed, "get_rank", lambda rank=rank: rank)
        learner = SimpleNamespace(rank=rank, gather_weights=dict)
        with pytest.raises(TrainingError, match="no verdicts"):
            rl._publish(job, learner, SimpleNamespace(publish=publish), 1, 1, {})
