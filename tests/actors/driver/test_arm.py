"""What a session's backend does with the engines, and when RL ends early."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from actors.driver.arm import ArmBackend, schedule_of
from actors.driver.engine_policy import EnginePolicy
from actors.driver.step_metrics import EngineWork, StepMetrics
from actors.driver.validation import Validator
from actors.weights.shared_memory import FileAnnouncement
from bi_ray.config.training import RLConfig, ValidationConfig
from bi_ray.policy.version import PolicyVersion


class Pool:
    """Takes every version."""

    def __init__(self):
        self.version = PolicyVersion(0, 0)
        self.synced = []
        self.redispatched = 3

    async def sync(self, announcement, in_flight=False):
        self.version = announcement.version
        self.synced.append((announcement.version, announcement.path, in_flight))

    def busy_s(self):
        return {1: 2.0, 2: 4.0}


class Monitor:
    def __init__(self):
        self.went_back = []

    def go_back(self, step):
        self.went_back.append(step)


@pytest.fixture(autouse=True)
def announcements(monkeypatch):
    monkeypatch.setattr(
        "actors.driver.engine_policy.announce",
        lambda version, path: FileAnnouncement(version, "node", str(path)),
    )


def backend_of(config, pool, monitor=None, validator=None):
    policy = EnginePolicy(pool, Path("base"))
    return ArmBackend(
        config, Path("sft"), Path("out"), pool, policy, None, None, validator, monitor
    )


def test_the_engines_go_back_with_the_learners_and_the_monitor_does_too():
    async def scenario():
        await backend.sync(PolicyVersion(1, 0), Path("sft"))
        await backend.sync(PolicyVersion(1, 1), Path("one"))
        await backend.sync(PolicyVersion(2, 0), Path("sft"))

    pool, monitor = Pool(), Monitor()
    backend = backend_of(RLConfig(), pool, monitor)
    asyncio.run(scenario())
    assert [version for version, *_ in pool.synced] == [(1, 0), (1, 1), (2, 0)]
    assert monitor.went_back == [0, 0]  # at every new incarnation
    assert not any(in_flight for *_, in_flight in pool.synced)


def test_a_policy_from_outside_gets_a_version_of_its_own():
    pool = Pool()
    policy = EnginePolicy(pool, Path("base"))
    asyncio.run(policy.load(Path("first")))
    asyncio.run(policy.load(Path("second")))
    assert pool.synced == [((1, 0), "first", False), ((2, 0), "second", False)]
    assert (policy.version, policy.weights) == ((2, 0), Path("second"))


def test_where_a_step_has_its_policy():
    backend = backend_of(RLConfig(), Pool())
    assert str(backend.policy_of(0)) == "sft/model.safetensors"
    assert str(backend.policy_of(3)) == "out/step_3/policy/model.safetensors"


def test_what_engines_did_in_a_step_is_a_difference():
    before = EngineWork({1: 1.0}, 1)
    assert backend_of(RLConfig(), Pool()).engine_work().since(before, 4.0) == {
        "idle_share_engine_1": 0.75,
        "idle_share_engine_2": 0.0,
        "redispatched_groups": 2,
    }


def test_the_fields_of_a_row_keep_their_order():
    row = StepMetrics(
        step=1,
        batch={"reward": 1},
        learner={"loss": 2},
        validation={"validation/val/greedy": 3},
        sync_s=4,
        validate_s=5,
        step_s=6,
        queued_batches=7,
        dropped_batches=8,
        idle_share_learner=9,
        engines={"idle_share_engine_1": 10, "redispatched_groups": 11},
    ).row()
    assert list(row.values()) == list(range(1, 2)) + list(range(1, 12))
    assert list(row) == [
        "step",
        "reward",
        "loss",
        "validation/val/greedy",
        "sync_s",
        "validate_s",
        "step_s",
        "queued_batches",
        "dropped_batches",
        "idle_share_learner",
        "idle_share_engine_1",
        "redispatched_groups",
    ]


def test_steps_that_must_settle():
    config = RLConfig(
        steps=10,
        max_staleness=1,
        checkpoint_every_steps=4,
        validation=ValidationConfig(sets=["val"], every_steps=5),
    )
    schedule = schedule_of(config)
    assert [step for step in range(1, 11) if schedule.waits(step)] == [4, 5, 8, 10]
    plain = schedule_of(RLConfig(steps=10))
    assert all(plain.waits(step) for step in range(1, 11))


def test_patience_ends_rl_by_the_rows_of_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr("actors.driver.validation.read_problems", lambda folder: [])
    config = RLConfig(validation=ValidationConfig(sets=["val"], patience=1))
    validator = Validator(config, tmp_path, tmp_path, None)
    rows = [{"step": step, "validation/val/greedy": 0.5} for step in (0, 1)]
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n")
    assert validator.last_step() is None
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert validator.last_step() == 1
