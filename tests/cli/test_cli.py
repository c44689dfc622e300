"""The command line as a whole: help, errors, and the commands that need no run."""

import json
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from bi_ray.cli.main import _PANELS
from bi_ray.config.files import load_config
from bi_ray.config.pretraining import PretrainConfig
from bi_ray.config.run import RunConfig
from tests.command_line import QUICKSTART, ROOT, call, printed_error

COMMANDS = [command.__name__ for commands in _PANELS.values() for command in commands]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("command", [*COMMANDS, "job"])
def test_every_command_explains_itself(command):
    assert command in call("--help")
    assert len(call(command, "--help").splitlines()) > 5


def test_help_groups_commands_as_the_docs_do():
    headings = []
    documented = {}
    for line in (ROOT / "docs" / "commands.md").read_text().splitlines():
        if line.startswith("## "):
            headings.append(line.removeprefix("## "))
        for command in COMMANDS:
            if line.startswith(f"| `bi-ray {command} ") or line.startswith(f"| `bi-ray {command}`"):
                documented.setdefault(command, headings[-1])
    for panel, commands in _PANELS.items():
        for command in commands:
            assert documented[command.__name__] == panel
    assert list(_PANELS) == headings


def test_help_shows_the_defaults_that_are_not_values():
    assert "the configuration's number for this set" in call("data", "--help")
    assert "FILE.verdicts.jsonl" in call("check", "--help")


def test_show_prints_the_problem_and_its_behaviors():
    with_behaviors = call("show", QUICKSTART, "--arm", "bridge")
    without = call("show", QUICKSTART, "--arm", "vanilla")
    lines = without.splitlines()
    question = next(line for line in lines if line.startswith("What is the value of"))
    assert question in with_behaviors
    assert with_behaviors.count(" = ") > without.count(" = ")


def test_dry_run_prints_a_configuration_that_reads_back_the_same(tmp_path):
    printed = call("run", QUICKSTART, "--run", tmp_path / "run", "--dry-run")
    (tmp_path / "again.yaml").write_text(printed)
    assert load_config(tmp_path / "again.yaml", RunConfig) == load_config(QUICKSTART, RunConfig)
    assert not (tmp_path / "run").exists()


def test_options_lists_every_option_with_its_type_default_and_meaning():
    lines = call("options").splitlines()
    assert lines[lines.index("rl.steps: integer >= 1 (steps); default 200") + 1] == (
        "    Optimizer steps."
    )
    assert "rollout.sync_timeout_s: seconds > 0; default 120" in lines
    assert "task.max_abs_value: integer >= 1; default 1000; of kind promptbench" in lines
    assert "task.answer.tolerance: number >= 0; default 1.0e-06; of kind jsonl" in lines
    assert "task.task: string; required; of kind reasoning_gym" in lines
    of_validation = call("options", "rl.validation").splitlines()
    assert all(line.startswith(("rl.validation", "    ")) for line in of_validation)
    assert "curriculum_steps: integer >= 1 (steps); default 2600" in call(
        "options", "--of", "pretrain"
    )


def test_a_known_error_is_one_line_and_exit_code_2(monkeypatch, capsys):
    output = printed_error(monkeypatch, capsys, "show", QUICKSTART, "--arm", "nobody")
    assert output.strip().endswith("the configuration has vanilla, bridge")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(file):
    kind = PretrainConfig if file.stem.startswith("pretrain") else RunConfig
    load_config(file, kind)


def test_the_cluster_file_fits_the_schema_of_ray():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((ROOT / "cluster.yaml").read_text()), schema)
