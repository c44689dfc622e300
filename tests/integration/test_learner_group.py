"""The learner group on real Ray and Ray Train: one worker against two, and killed learners.

Starting a fit takes long, so one fixture runs the jobs and several tests look at the results.
"""

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import ray
import torch
from datasets import Dataset
from ranks import TOKENS, distance
from safetensors.torch import load_file

from actors.driver.session import SessionError
from actors.learners.group import LearnerError, LearnerGroup, failing_rank
from actors.rollout.queue import PoolError
from bi_ray.batches.advantages import group_advantages
from bi_ray.batches.batch import LearnerBatch, TrainSample
from bi_ray.config.run import ModelConfig, RayConfig
from bi_ray.config.training import LearnerConfig, OptimizerConfig, RLConfig, SFTConfig
from bi_ray.policy.files import CheckpointError
from bi_ray.runs.metrics import read_metrics

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("ray_local")]
# Learners cannot import this file, so its actor classes are pickled by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
LARGE_STEP = OptimizerConfig(kind="sgd", learning_rate=1.0, max_grad_norm=1e9)
ADAMW = OptimizerConfig(learning_rate=1e-3)


@pytest.fixture(scope="module")
def base(tiny_model):
    return tiny_model(tied=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("data") / "sft"
    columns = {
        name: [torch.randint(0, TOKENS, (5 + i % most,)).tolist() for i in range(40)]
        for name, most in (("prompt_tokens", 7), ("response_tokens", 11))
    }
    Dataset.from_dict(columns).save_to_disk(str(path))
    return path


def group(run, workers=1, **options):
    config = LearnerConfig(workers=workers, cpus_per_worker=0.5, microbatch_tokens=128, **options)
    return LearnerGroup(run, config, ModelConfig(), RayConfig(call_timeout_s=30))


def weights(policy):
    return load_file(policy / "model.safetensors")


def prepared_batch(step):
    """Two groups of four samples; in step 2, all rewards are equal."""
    torch.manual_seed(step)
    samples = []
    for number, rewards in enumerate(([1, 0, 0, 1], [0, 0, 1, 0])):
        prompt = tuple(torch.randint(0, TOKENS, (6,)).tolist())
        for sample, advantage in enumerate(group_advantages(rewards)):
            response = tuple(torch.randint(0, TOKENS, (4 + 3 * sample,)).tolist())
            logprobs = tuple((-5 + 0.1 * torch.randn(len(response))).tolist())
            samples.append(
                TrainSample(f"{step}/{number}/{sample}", prompt, response, logprobs, advantage)
            )
    return LearnerBatch([] if step == 2 else samples, 8)


class ServingDriver:
    """A small real driver that keeps what learners asked for and reported."""

    def __init__(self, pause_s=0.0):
        self.calls, self.incarnation, self.pause_s = [], 0, pause_s

    def join(self, step):
        self.incarnation += 1
        self.calls.append(("join", step))
        return self.incarnation

    def lease(self, step, incarnation):
        assert incarnation == self.incarnation
        self.calls.append(("lease", step))
        time.sleep(self.pause_s)
        return prepared_batch(step)

    def publish(self, incarnation, step, path, metrics):
        assert incarnation == self.incarnation
        self.calls.append(("publish", step, path, metrics))

    def checkpointed(self, step):
        self.calls.append(("checkpointed", step))

    def seen(self):
        return self.calls


def kill_learner():
    """SIGKILL one process that runs a train worker."""
    kill(b"RayTrainWorker")


def kill(actor):
    """SIGKILL the newest process of this test's Ray with such a name; older fits may still end."""
    pids = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    found = [int(pid) for pid in pids if actor in _cmdline(pid) and _session() in _environment(pid)]
    assert found, f"no {actor.decode()} is running"
    os.kill(max(found, key=lambda pid: psutil.Process(pid).create_time()), signal.SIGKILL)


def _cmdline(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _environment(pid):
    """The environment of a process, which has Ray's job or node; others' learners are not ours."""
    try:
        with open(f"/proc/{pid}/status") as file:
            parent = next(line.split()[1] for line in file if line.startswith("PPid"))
        return _cmdline(parent)
    except OSError:
        return b""


def _session():
    return os.path.basename(ray._private.worker.global_worker.node.get_session_dir_path()).encode()


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_two_workers_take_the_step_of_one(tmp_path, base, data):
    """After one SGD step of rate 1, the difference from the base is the gradient."""
    before = weights(base)
    sft = SFTConfig(epochs=1, batch_examples=40, optimizer=LARGE_STEP)
    rl = RLConfig(
        steps=1,
        optimizer=LARGE_STEP,
        loss_scale="token_mean",
        kl={"estimator": "k3", "coefficient": 0.1},
    )
    learned, drivers = {}, {}
    for workers in (1, 2):
        run = tmp_path / str(workers)
        began = time.monotonic()
        group(run, workers).run_sft(base, data, run / "sft", sft, seed=0)
        print(f"SFT fit of one step, {workers} workers: {time.monotonic() - began:.1f} s")
        drivers[workers] = ray.remote(ServingDriver).options(num_cpus=0).remote()
        group(run, workers).run_rl(base, run / "rl", run / "weights", rl, drivers[workers])
        learned[workers] = {
            "sft": weights(run / "sft" / "policy"),
            "rl": weights(run / "rl" / "step_1" / "policy"),
        }
        # Published weights are the checkpoint's, without the tied head.
        published = load_file(run / "weights" / "1.1.safetensors")
        assert "lm_head.weight" not in published
        head = {"lm_head.weight": published["model.embed_tokens.weight"]}
        assert distance(published | head, learned[workers]["rl"]) == 0
    for job in ("sft", "rl"):
        one, two = learned[1][job], learned[2][job]
        assert distance(two, one) <= 1e-5
        gradients = [
            {name: before[name].double() - after[name].double() for name in before}
            for after in (one, two)
        ]
        assert distance(gradients[1], gradients[0]) <= 1e-5
        assert distance({name: one[name] for name in before}, before) > 1e-3
    calls = ray.get(drivers[2].seen.remote())
    assert sorted(call[:2] for call in calls) == [
        ("checkpointed", 1),
        ("join", 0),
        ("lease", 1),
        ("lease", 1),
        ("publish", 1),
    ]
    metrics = next(call[3] for call in calls if call[0] == "publish")
    assert metrics["tokens"] == sum(
        len(sample.response_tokens) for sample in prepared_batch(1).samples
    )
    assert metrics["mismatch_max"] >= metrics["mismatch_mean"] > 0
    assert metrics["kl"] == 0  # the reference is the policy itself


@pytest.mark.slow
def test_killed_sft_learner_resumes(tmp_path, base, data):
    sft = SFTConfig(epochs=8, batch_examples=4, optimizer=ADAMW, checkpoint_every_steps=10)
    group(tmp_path).run_sft(base, data, tmp_path / "whole", sft, seed=3)
    rows = {}
    with ThreadPoolExecutor() as pool:
        done = pool.submit(group(tmp_path).run_sft, base, data, tmp_path / "killed", sft, 3)
        path = tmp_path / "killed" / "metrics.jsonl"
        wait_for(lambda: len(read_metrics(path)) >= 15)
        kill_learner()
        done.result(timeout=240)
    rows = {name: read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")}
    assert [row["step"] for row in rows["killed"]] == list(range(1, 81))
    assert [row["loss"] for row in rows["killed"]] == pytest.approx(
        [row["loss"] for row in rows["whole"]], abs=1e-6
    )
    assert distance(weights(tmp_path / "killed/policy"), weights(tmp_path / "whole/policy")) <= 1e-6
    assert sorted(path.name for path in (tmp_path / "killed/checkpoints").iterdir()) == [
        "step_60",
        "step_70",
    ]


@pytest.mark.slow
def test_killed_rl_learner_asks_again(tmp_path, base):
    rl = RLConfig(steps=5, optimizer=ADAMW, checkpoint_every_steps=2, batch_timeout_s=60)
    whole = ray.remote(ServingDriver).options(num_cpus=0).remote()
    group(tmp_path).run_rl(base, tmp_path / "whole", tmp_path / "weights_whole", rl, whole)
    slow = ray.remote(ServingDriver).options(num_cpus=0).remote(pause_s=1.0)
    with ThreadPoolExecutor() as pool:
        done = pool.submit(
            group(tmp_path).run_rl, base, tmp_path / "killed", tmp_path / "weights", rl, slow
        )
        wait_for(lambda: ("publish", 3) in [call[:2] for call in ray.get(slow.seen.remote())])
        kill_learner()
        done.result(timeout=240)
    calls = [call[:2] for call in ray.get(slow.seen.remote())]
    again = calls[calls.index(("join", 2)) :]
    assert [step for kind, step in again if kind == "lease"] == [3, 4, 5]
    assert again[-2:] == [("publish", 5), ("checkpointed", 5)]
    assert (
        distance(
            weights(tmp_path / "killed/step_5/policy"), weights(tmp_path / "whole/step_5/policy")
        )
        <= 1e-6
    )
    published = {path.name: load_file(path) for path in (tmp_path / "weights_whole").iterdir()}
    # an empty batch changes nothing
    assert distance(published["1.2.safetensors"], published["1.1.safetensors"]) == 0
    assert distance(published["1.3.safetensors"], published["1.2.safetensors"]) > 0
    assert json.loads((tmp_path / "killed/step_5/state.json").read_text())["step"] == 5
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["step_4", "step_5"]


class RefusingDriver:
    """Refuses the first joins, with these errors."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.joins = 0

    def join(self, step):
        self.joins += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.joins

    def asked(self):
        return self.joins

    def lease(self, step, incarnation):
        return prepared_batch(step)

    def publish(self, incarnation, step, path, metrics):
        pass

    def checkpointed(self, step):
        pass


def test_a_job_that_cannot_continue_reports_it_in_one_line(tmp_path, base):
    """Without a restart: the driver is asked once."""
    driver = (
        ray.remote(RefusingDriver).options(num_cpus=0).remote(SessionError("no RL session is open"))
    )
    with pytest.raises(LearnerError, match="no RL session is open") as caught:
        group(tmp_path).run_rl(
            base, tmp_path / "rl", tmp_path / "weights", RLConfig(steps=1), driver
        )
    assert len(str(caught.value).splitlines()) == 1
    assert ray.get(driver.asked.remote()) == 1


@pytest.mark.slow
def test_a_failed_join_is_retried_as_often_as_learners_restart(tmp_path, base):
    errors = PoolError("no rollout worker took version 1.0"), TimeoutError("no answer")
    driver = ray.remote(RefusingDriver).options(num_cpus=0).remote(*errors)
    group(tmp_path, 2, max_restarts=2).run_rl(
        base, tmp_path / "rl", tmp_path / "weights", RLConfig(steps=1), driver
    )
    assert ray.get(driver.asked.remote()) == 3
    driver = ray.remote(RefusingDriver).options(num_cpus=0).remote(*errors)
    with pytest.raises(
        LearnerError, match=r"did not let the learners join: no rollout worker took"
    ) as caught:
        group(tmp_path, max_restarts=0).run_rl(
            base, tmp_path / "again", tmp_path / "weights", RLConfig(steps=1), driver
        )
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_the_killed_controller_of_ray_train_is_replaced(tmp_path, base):
    rl = RLConfig(steps=5, optimizer=ADAMW, checkpoint_every_steps=2, batch_timeout_s=60)
    driver = ray.remote(ServingDriver).options(num_cpus=0).remote(pause_s=1.0)
    with ThreadPoolExecutor() as pool:
        done = pool.submit(
            group(tmp_path).run_rl, base, tmp_path / "rl", tmp_path / "weights", rl, driver
        )
        wait_for(lambda: ("publish", 3) in [call[:2] for call in ray.get(driver.seen.remote())])
        kill(b"TrainController")
        done.result(timeout=240)
    calls = [call[:2] for call in ray.get(driver.seen.remote())]
    assert [call for call in calls if call[0] == "join"] == [("join", 0), ("join", 2)]
    assert calls[-2:] == [("publish", 5), ("checkpointed", 5)]


def test_missing_resources_are_an_error_in_time(tmp_path, base, data):
    began = time.monotonic()
    with pytest.raises(
        LearnerError, match=r"no room for 99 learners within 4 s .* they need 49.5 CPUs"
    ):
        group(tmp_path, workers=99, start_timeout_s=4, max_restarts=1).run_sft(
            base, data, tmp_path / "sft", SFTConfig(), seed=0
        )
    assert time.monotonic() - began < 60


def test_a_missing_base_is_refused_before_anything_starts(tmp_path, data):
    with pytest.raises(CheckpointError, match="no model at"):
        group(tmp_path).run_sft(tmp_path / "absent", data, tmp_path / "sft", SFTConfig(), seed=0)


def test_the_rank_that_failed_by_itself_is_named():
    lost = RuntimeError(
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer"
    )
    assert failing_rank({0: lost, 1: OSError(28, "No space left on device")}).startswith(
        "learner 1: OSError:"
    )
    assert (
        failing_rank({0: lost, 1: ray.exceptions.ActorDiedError()})
        == "learner 1 died (killed, or out of memory?)"
    )
