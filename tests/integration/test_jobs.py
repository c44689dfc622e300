"""Runs as jobs on a real cluster with tokens, where `ray.init()` has written a token before."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from bi_ray.runs.place import RunPlace
from bi_ray.runs.status import describe_status

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DEADLINE_S = 400
SFT_STEPS = 400
CHECKPOINT_STEPS = 20
RL_STEPS = 2


def parity(question, answer, response):
    """A reward that a random policy gets half of the time, so that rewards differ in groups."""
    return float(len(response) % 2)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Cluster:
    """A head node with its own folders, ports and home, stopped by its process id.

    Attributes:
        home: where Ray keeps the token of this "machine".
        project: the working directory of submitted jobs: a configuration and a model, nothing else.
        bare: the environment of a user who sets nothing about authentication.
        environment: the same with the authentication mode.
    """

    def __init__(self, folder: Path) -> None:
        self.home, self.project = folder / "home", folder / "project"
        self.home.mkdir()
        self.project.mkdir()
        self.temporary = tempfile.mkdtemp(prefix="br", dir="/tmp")  # sockets need short paths
        self.address = f"http://127.0.0.1:{free_port()}"
        said = {
            "RAY_AUTH_MODE",
            "RAY_AUTH_TOKEN",
            "RAY_ADDRESS",
            "RAY_API_SERVER_ADDRESS",
            "BI_RAY_LOCAL",
        }
        own = {
            "HOME": str(self.home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "160",
        }
        self.bare = {name: value for name, value in os.environ.items() if name not in said} | own
        self.environment = self.bare
        self.process: subprocess.Popen | None = None

    def start(self, auth_mode: str) -> None:
        self.environment = self.bare | {"RAY_AUTH_MODE": auth_mode}
        ports = [
            f"--{name}={free_port()}"
            for name in ("port", "ray-client-server-port", "metrics-export-port")
        ]
        ports += [f"--dashboard-agent-{name}-port={free_port()}" for name in ("listen", "grpc")]
        ports += [f"--dashboard-port={self.address.rpartition(':')[2]}"]
        size = ["--num-cpus=4", "--object-store-memory=200000000", f"--temp-dir={self.temporary}"]
        command = [
            BIN / "ray",
            "start",
            "--head",
            "--block",
            "--disable-usage-stats",
            "--include-dashboard=true",
        ]
        with open(self.home / "ray_start.log", "w") as log:
            self.process = subprocess.Popen(
                [*command, *size, *ports],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 120
        while self.call("bi-ray", "job", "list", "--address", self.address)[0]:
            assert self.process.poll() is None, (self.home / "ray_start.log").read_text()
            assert time.monotonic() < deadline, "the cluster did not come up"

    def stop(self) -> None:
        if self.process is not None:
            mine = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(signal.SIGINT)
            psutil.wait_procs([psutil.Process(self.process.pid)], timeout=30)
            for process in [*mine, self.process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def processes(self, *titles: str) -> list[psutil.Process]:
        """Processes of this cluster whose title starts so: Ray names workers after their class."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended, or is a zombie
                found += [process] if " ".join(process.cmdline()).startswith(titles) else []
        return found

    def popen(self, *command, environment=None) -> subprocess.Popen:
        return subprocess.Popen(
            # ignored by a pytest in the background
            ["env", "--default-signal=INT", *map(str, command)],
            env=environment or self.environment,
            cwd=self.project,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *command, environment=None) -> tuple[int, str]:
        with self.popen(*command, environment=environment) as process:
            try:
                output, _ = process.communicate(timeout=DEADLINE_S)
            except BaseException:
                process.kill()
                raise
            return process.returncode, output

    def bi_ray(self, *command, environment=None) -> tuple[int, str]:
        return self.call("bi-ray", *command, "--address", self.address, environment=environment)


def config(sft_epochs: int, rl_steps: int) -> dict:
    easy = {"problems": 8, "depth": 2, "redundant_nodes": [1, 4]}
    return {
        "name": "tiny",
        "task": {
            "kind": "promptbench",
            "name_pool": 48,
            "sets": {"sft": easy | {"problems": 64}, "rl": easy, "test_id": easy, "test_ood": easy},
        },
        "arms": ["bridge"],
        "model": {"path": "model", "max_prompt_tokens": 128, "max_response_tokens": 96},
        "learner": {"workers": 1, "cpus_per_worker": 0.5},
        "sft": {
            "epochs": sft_epochs,
            "batch_examples": 16,
            "checkpoint_every_steps": CHECKPOINT_STEPS,
        },
        "rl": {
            "steps": rl_steps,
            "prompts_per_step": 2,
            "samples_per_prompt": 2,
            "optimizer": {"learning_rate": 1e-3},
            "checkpoint_every_steps": 2,
        },
        "rollout": {"workers": 1, "cpus_per_worker": 0.5, "kv_cache_mib": 64, "max_sequences": 8},
        "verifier": {"reward_function": "tests.integration.test_jobs:parity"},
        "evaluation": {"sets": ["test_id"], "samples_per_prompt": 0, "bootstrap_draws": 200},
    }


def make_cluster(folder: Path, model: Path) -> Cluster:
    cluster = Cluster(folder)
    shutil.copytree(model, cluster.project / "model")
    (cluster.project / "tiny.yaml").write_text(yaml.safe_dump(config(SFT_STEPS // 4, RL_STEPS)))
    (cluster.project / "long.yaml").write_text(yaml.safe_dump(config(1, 2000)))
    return cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, tiny_model):
    cluster = make_cluster(tmp_path_factory.mktemp("cluster"), tiny_model(True))
    plain = "import ray; ray.init('local', num_cpus=1, include_dashboard=False, _temp_dir={!r})"
    code, output = cluster.call(
        sys.executable, "-c", plain.format(cluster.temporary), environment=cluster.bare
    )
    assert code == 0, output
    # makes the next `ray start` require tokens
    assert (cluster.home / ".ray" / "auth_token").exists()
    try:
        cluster.start("token")
        yield cluster
    finally:
        cluster.stop()


def wait_for(condition, what: str, process: subprocess.Popen) -> None:
    """Wait until the condition holds, while ``process``, which follows the job, is running."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {what} after {DEADLINE_S} s"
        time.sleep(0.1)


def rows(file: Path) -> list[dict]:
    whole = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in whole if line.endswith("\n")]


def steps(file: Path) -> list[int]:
    return [row["step"] for row in rows(file)]


def stages(run: Path) -> int:
    """The number of finished stages: at least those before RL, RL, and the evaluations."""
    done = len(list(run.rglob("stage.json")))
    assert done >= 6
    return done


def submit(cluster: Cluster, *arguments) -> subprocess.Popen:
    return cluster.popen("bi-ray", "submit", *arguments, "--address", cluster.address)


def end(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, output


def test_a_run_is_stopped_and_submitted_again(cluster, tmp_path):
    """Stopped in SFT; resumed by plain `ray job submit`; a third job finds everything done."""
    run = tmp_path / "run"
    followed = submit(cluster, "tiny.yaml", "--run", run, "--job-id", "first")
    work = run / "work/sft/bridge/metrics.jsonl"
    wait_for(lambda: len(rows(work)) > CHECKPOINT_STEPS, "SFT steps", followed)
    assert "(job first on" in describe_status(RunPlace.of(str(run)))[0]
    code, output = cluster.bi_ray("job", "stop", "first")
    assert (code, output) == (0, "first: STOPPED\n")
    code, output = end(followed)
    assert code == 1
    assert "stopped by SIGTERM; the same command resumes" in output
    code, output = cluster.call("bi-ray", "status", run)
    assert "not in use" in output
    reached = steps(work)[-1]
    assert CHECKPOINT_STEPS < reached < SFT_STEPS
    assert f"sft/bridge               step {reached}" in output
    first_rows = rows(work)[:CHECKPOINT_STEPS]

    again = ["ray", "job", "submit", "--address", cluster.address, "--working-dir", "."]
    code, output = cluster.call(*again, "--", "bi-ray", "run", "tiny.yaml", "--run", run)
    assert code == 0, output
    assert "sft_data/bridge: already done" in output
    assert "Greedy accuracy" in output
    assert steps(run / "sft/bridge/metrics.jsonl") == list(range(1, SFT_STEPS + 1))
    assert (
        rows(run / "sft/bridge/metrics.jsonl")[:CHECKPOINT_STEPS] == first_rows
    )  # not trained again
    assert (run / "report" / "summary.json").exists()

    began = time.monotonic()
    code, output = end(submit(cluster, "tiny.yaml", "--run", run, "--job-id", "third"))
    assert code == 0, output
    assert output.count("already done") == stages(run)
    assert output.endswith("third: SUCCEEDED\n")
    assert time.monotonic() - began < 90
    assert "third  SUCCEEDED" in cluster.bi_ray("job", "list")[1]


def test_a_relative_run_directory_is_refused_in_the_job_too(cluster):
    plain = ["ray", "job", "submit", "--address", cluster.address, "--working-dir", "."]
    code, output = cluster.call(*plain, "--", "bi-ray", "run", "tiny.yaml", "--run", "runs/x")
    assert code == 1
    assert "the run directory, runs/x, is relative: a job runs in a copy" in output


def test_a_cluster_with_tokens_names_what_is_missing(cluster):
    code, output = cluster.bi_ray("job", "list", environment=cluster.bare)
    assert code == 2
    assert (
        "wants a token, or another one: set RAY_AUTH_MODE=token (or give --auth-mode token"
        in output
    )
    assert "Traceback" not in output
    assert cluster.bi_ray("job", "list", "--auth-mode", "token", environment=cluster.bare)[0] == 0
    wrong = cluster.environment | {"RAY_AUTH_TOKEN": "0" * 32}
    code, output = cluster.bi_ray("job", "list", environment=wrong)
    assert (code, "wants a token, or another one" in output) == (2, True)


def test_mistakes_about_jobs_are_one_line(cluster, tmp_path):
    def refused(words, *command):
        code, output = cluster.call("bi-ray", *command)
        assert (code, "Traceback" in output) == (2, False), output
        assert words in " ".join(output.split())

    server = ("--address", cluster.address)
    refused("no job nobody at http", "job", "stop", "nobody", *server)
    refused(
        "no Ray job server answers at",
        "job",
        "list",
        "--address",
        f"http://127.0.0.1:{free_port()}",
    )
    refused("give the address of the job server", "job", "list", "--address", "127.0.0.1:6379")
    refused("no run is in progress in", "scale", "--run", cluster.project, "--workers", "2")
    nowhere = f"127.0.0.1:{free_port()}"
    refused(
        f"no Ray answers at {nowhere}",
        "scale",
        "--run",
        tmp_path,
        "--workers",
        "2",
        "--address",
        nowhere,
    )


@pytest.mark.slow
def test_a_run_is_scaled_detached_from_stopped_and_resumed(cluster, tmp_path):
    """During RL: scaling, a refused second job, Ctrl-C that leaves the job alone, a clean stop."""
    run = tmp_path / "run"
    work = run / "work/rl/bridge/metrics.jsonl"
    followed = submit(cluster, "long.yaml", "--run", run, "--job-id", "long")
    wait_for(lambda: len(rows(work)) >= 3, "RL steps", followed)
    code, output = cluster.call("bi-ray", "scale", "--run", run, "--workers", "2")
    assert code == 0, output
    assert "1 healthy, 2 starting" in output
    wait_for(lambda: len(engines(cluster)) == 2, "second engine", followed)
    code, output = cluster.call("bi-ray", "scale", "--run", run, "--workers", "1")
    assert code == 0, output
    wait_for(lambda: len(engines(cluster)) == 1, "end of an engine", followed)

    code, output = end(submit(cluster, "long.yaml", "--run", run))
    assert code == 1
    assert "is in use by process" in output
    assert "(job long on" in output

    followed.send_signal(signal.SIGINT)
    code, output = end(followed)
    assert code == 130
    assert "Detached; long continues." in output
    assert "bi-ray job logs long" in output
    reached = steps(work)[-1]
    time.sleep(5)
    assert steps(work)[-1] > reached
    assert "RUNNING" in cluster.bi_ray("job", "status", "long")[1]

    assert cluster.bi_ray("job", "stop", "long") == (0, "long: STOPPED\n")
    deadline = time.monotonic() + 30
    while engines(cluster) or cluster.processes("ray::Driver", "ray::RayTrainWorker"):
        assert time.monotonic() < deadline, "actors outlived their job"
        time.sleep(0.5)
    reached = steps(work)[-1]
    followed = submit(cluster, "long.yaml", "--run", run, "--no-wait", "--job-id", "again")
    assert end(followed)[0] == 0
    followed = cluster.popen("bi-ray", "job", "logs", "again", "--address", cluster.address)
    wait_for(lambda: steps(work)[-1] > reached + 2, "further RL steps", followed)
    assert steps(work) == list(range(1, steps(work)[-1] + 1))
    assert cluster.bi_ray("job", "stop", "again")[0] == 0
    code, output = end(followed)
    assert "eval_sft/bridge: already done" in output


def engines(cluster: Cluster) -> list[psutil.Process]:
    return cluster.processes("VLLM::EngineCore")


@pytest.mark.slow
def test_a_run_at_a_uri(cluster, tmp_path):
    """A second working copy, as on another cluster, gets everything from the URI."""
    uri = f"file://{tmp_path}/home/run"
    code, output = end(submit(cluster, "tiny.yaml", "--run", uri, "--local", tmp_path / "one"))
    assert code == 0, output
    assert f"Also at {uri}" in output
    home = tmp_path / "home/run"
    assert (home / "report/summary.json").exists()
    code, output = end(submit(cluster, "tiny.yaml", "--run", uri, "--local", tmp_path / "two"))
    assert code == 0, output
    assert output.count("already done") == stages(home)
    code, output = cluster.call("bi-ray", "status", uri)
    assert output.count("  done ") == stages(home)
    assert not list(home.glob("lock.json"))


@pytest.mark.slow
def test_a_cluster_without_tokens(tmp_path, tiny_model):
    """Both sides set the mode, so that an existing token changes nothing."""
    (tmp_path / "cluster").mkdir()
    cluster = make_cluster(tmp_path / "cluster", tiny_model(True))
    (cluster.home / ".ray").mkdir()
    (cluster.home / ".ray" / "auth_token").write_text("0" * 32)
    try:
        cluster.start("disabled")
        code, output = cluster.bi_ray(
            "submit", "tiny.yaml", "--run", tmp_path / "run", environment=cluster.bare
        )
        assert code == 0, output
        plain = [
            *(
                "ray",
                "job",
                "submit",
                "--address",
                cluster.address,
                "--working-dir",
                ".",
                "--",
                "bi-ray",
                "run",
            )
        ]
        code, output = cluster.call(*plain, "tiny.yaml", "--run", tmp_path / "run")
        assert code == 0, output
        assert output.count("already done") == stages(tmp_path / "run")
    finally:
        cluster.stop()
