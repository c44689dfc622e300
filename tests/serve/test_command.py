import importlib
import json
import shlex
import shutil
import socket
import sys
from pathlib import Path

import pytest
import yaml
from ray import serve as ray_serve
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from bi_ray.cli import main as cli
from bi_ray.config.files import load_config, save_config
from bi_ray.config.run import RayConfig, RunConfig
from bi_ray.data.problems import write_problems
from bi_ray.files.errors import RunError
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.tasks.registry import build_task
from serve import command
from serve.app import ServeArgs, build
from serve.command import base_url, cluster_of, curl, first_problem, reason_of
from serve.policies import ServeError
from tests.serve.test_policies import flip_a_bit, make
from tests.serving import free_port

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.delenv("BI_RAY_API_KEYS", raising=False)
    save_config(load_config(QUICKSTART, RunConfig), tmp_path / "config.yaml")
    make(tmp_path / "sft/bridge", "weights")
    return tmp_path


def error_of(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["bi-ray", "serve", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().out.split())


def test_mistakes_are_one_line_before_anything_starts(run, monkeypatch, capsys):
    def error(*arguments):
        return error_of(monkeypatch, capsys, *arguments)

    assert "no run at" in error(run / "absent")
    assert "it has base, vanilla-sft" in error(run, "--models", "bridge-sft,other")
    assert "not trained yet" in error(run, "--models", "bridge-rl")
    assert "needs an API key: add --api-key-file FILE" in error(run, "--host", "0.0.0.0")
    assert "--allowed-host http://x: expected a name" in error(run, "--allowed-host", "http://x")
    assert "--allowed-origin x: expected scheme" in error(run, "--allowed-origin", "x")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port + 1}" in error(run, "--port", port)


@pytest.mark.parametrize(
    ("named", "address", "environment", "joined", "note"),
    [
        (None, None, None, None, None),
        (
            "10.6.6.6:1",
            None,
            None,
            None,
            "10.6.6.6:1 is not joined: give --address 10.6.6.6:1 to serve there",
        ),
        (
            "10.6.6.6:1",
            None,
            "10.7.7.7:1",
            None,
            "10.6.6.6:1 is not joined: give --address 10.6.6.6:1",
        ),
        ("10.6.6.6:1", None, "10.6.6.6:1", "10.6.6.6:1", None),
        ("10.6.6.6:1", "10.6.6.6:1", None, "10.6.6.6:1", None),
        ("10.6.6.6:1", "10.7.7.7:1", None, "10.7.7.7:1", None),
        (None, "10.7.7.7:1", None, "10.7.7.7:1", None),
    ],
)
def test_the_cluster_that_a_run_names_is_joined_only_if_the_user_names_it_too(
    monkeypatch, named, address, environment, joined, note
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    cluster, text = cluster_of(RayConfig(address=named, local_cpus=3), address)
    assert (cluster.address, cluster.local_cpus) == (joined, 3)
    assert text is None if note is None else note in text


def test_a_job_serves_on_its_own_cluster_and_says_so(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", "10.7.7.7:1")
    cluster, text = cluster_of(RayConfig(address="10.6.6.6:1"), None)
    assert cluster.address is None
    assert text == "the run's cluster 10.6.6.6:1 is not joined: a Ray job serves on its own"


def test_the_command_joins_the_clusters_that_the_user_named_and_no_other(
    run, problems, monkeypatch, capsys
):
    joined = []

    def connect(config, source):
        joined.append((config.address, source))
        raise ServeError("joined")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(command, "connect", connect)
    config = load_config(QUICKSTART, RunConfig)
    cluster = config.ray.model_copy(update={"address": "10.6.6.6:6379"})
    save_config(config.model_copy(update={"ray": cluster}), run / "config.yaml")
    output = error_of(monkeypatch, capsys, run, "--port", free_port())
    assert "the run's cluster 10.6.6.6:6379 is not joined: give --address 10.6.6.6:6379" in output
    assert "not joined" not in error_of(
        monkeypatch, capsys, run, "--port", free_port(), "--address", "10.7.7.7:1"
    )
    assert joined == [(None, "RAY_ADDRESS"), ("10.7.7.7:1", "--address")]


def test_a_damaged_policy_is_one_line_before_anything_starts(run, problems, monkeypatch, capsys):
    make(run / "work/rl/bridge/step_10", "ten")
    flip_a_bit(run / "work/rl/bridge/step_10/policy/model.safetensors")
    error = error_of(monkeypatch, capsys, run, "--port", free_port())
    assert (
        "work/rl/bridge/step_10 is damaged: policy/model.safetensors has changed since "
        "it was written" in error
    )


def test_unusable_keys_are_one_line_that_shows_no_key(run, monkeypatch, capsys):
    def error(*arguments):
        shown = error_of(monkeypatch, capsys, run, *arguments)
        assert "secret" not in shown
        return shown

    file = run / "keys"
    file.write_text("secret\n")
    file.chmod(0o644)
    assert f"chmod 600 {file}" in error("--api-key-file", file)
    file.write_text("# secret\n")
    file.chmod(0o600)
    assert "no key in it" in error("--api-key-file", file)
    assert "No such file" in error("--api-key-file", run / "absent")
    assert "the key is empty" in error("--api-key", "")
    assert "printable ASCII" in error("--api-key", "secret\x7f")
    monkeypatch.setenv("BI_RAY_API_KEYS", "one,secr\u00e9t,secret")
    assert "BI_RAY_API_KEYS: key 2" in error()


def test_a_key_in_the_place_of_its_digest_is_refused_and_not_shown(run):
    with pytest.raises(ValueError, match="api_key_digests") as error:
        build({"run": str(run), "api_key_digests": ["a secret key"]})
    assert "secret" not in str(error.value)


def test_the_curl_survives_a_shell():
    conversation = [{"role": "user", "content": 'it\'s\n"5" $HOME `x`'}]
    words = shlex.split(curl(base_url("127.0.0.1", 8000), "bridge-rl", conversation, key=False))
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    body = json.loads(words[-1])
    assert body == {"model": "bridge-rl", "messages": conversation, "temperature": 0}
    assert "$YOUR_KEY" in curl(base_url("127.0.0.1", 8000), "m", conversation, key=True)


def test_the_url_is_one_that_this_machine_can_call():
    assert base_url("0.0.0.0", 80) == "http://127.0.0.1:80/v1"
    assert base_url("::", 80) == "http://[::1]:80/v1"
    assert base_url("host.example.org", 80) == "http://host.example.org:80/v1"


def test_why_an_engine_did_not_start_is_the_end_of_what_serve_says():
    traceback = "A replica failed to start.\nTraceback:\n  File x\nCheckpointError: no weights\n\n"
    healthy = DeploymentStatusOverview("HEALTHY", "CONFIG_UPDATE_COMPLETED", {}, "")
    failed = DeploymentStatusOverview("DEPLOY_FAILED", "REPLICA_STARTUP_FAILED", {}, traceback)
    overview = ApplicationStatusOverview(
        "DEPLOY_FAILED", "", 0, {"gateway": healthy, "bridge-rl": failed}
    )
    assert reason_of(overview) == "CheckpointError: no weights"
    assert (
        reason_of(ApplicationStatusOverview("DEPLOY_FAILED", "it cannot be built", 0, {}))
        == "it cannot be built"
    )


def test_the_deployed_run_is_named_absolutely(run):
    with pytest.raises(ServeError, match="absolute"):
        build(ServeArgs(run="runs/quickstart"))


def test_the_arguments_of_the_shipped_file_build_an_application(run):
    shipped = yaml.safe_load((QUICKSTART.parents[1] / "serve/config.yaml").read_text())[
        "applications"
    ][0]
    module, _, name = shipped["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name) is build
    assert isinstance(build(shipped["args"] | {"run": str(run)}), ray_serve.Application)
    with pytest.raises(ValueError, match="no_such_option"):
        build({"run": str(run), "no_such_option": 1})


@pytest.fixture
def problems(tmp_path):
    """A run with a test set of one problem."""
    quickstart = load_config(QUICKSTART, RunConfig)
    folder = tmp_path / "data" / quickstart.evaluation.sets[0]
    task = build_task(quickstart.task, 0)
    write_problems(
        task, "test_id", 1, load_tokenizer(quickstart.model.path), quickstart.model, folder
    )
    return folder


def test_the_first_problem_is_read_and_a_damaged_set_is_one_line_that_names_it(problems, tmp_path):
    assert first_problem(tmp_path, load_config(QUICKSTART, RunConfig)).answer
    for file in [
        *problems.rglob("*.arrow"),
        problems / "dataset_info.json",
        problems / "state.json",
    ]:
        whole = file.read_bytes()
        for content in (b"", whole[:50], b"\xff\x00"):
            file.write_bytes(content)
            with pytest.raises((ServeError, RunError)) as error:
                first_problem(tmp_path, load_config(QUICKSTART, RunConfig))
            assert str(problems) in str(error.value)
            assert "\n" not in str(error.value)
        file.write_bytes(whole)
    shutil.rmtree(problems)
    with pytest.raises((ServeError, RunError), match=str(problems)):
        first_problem(tmp_path, load_config(QUICKSTART, RunConfig))
