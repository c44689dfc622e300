import json
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from typer.testing import CliRunner

from bi_ray.cli import main as cli
from bi_ray.config import RunConfig, load_config

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def call(*arguments):
    result = CliRunner().invoke(
        cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    return result.output


_COMMANDS = [
    "run",
    "plan",
    "study",
    "readiness",
    "report",
    "pretrain",
    "show",
    "serve",
    "options",
    "submit",
    "status",
    "scale",
]


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_explains_itself(command):
    assert command in call("--help")
    assert len(call(command, "--help").splitlines()) > 5


def test_show_prints_the_problem_and_its_behaviors():
    with_behaviors = call("show", QUICKSTART, "--arm", "bridge")
    without = call("show", QUICKSTART, "--arm", "vanilla")
    question = next(
        line for line in without.splitlines() if line.startswith("What is the value of")
    )
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
    monkeypatch.setattr(sys, "argv", ["bi-ray", "show", str(QUICKSTART), "--arm", "nobody"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().out.strip().endswith("the configuration has vanilla, bridge")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_configuration_is_valid(file):
    from bi_ray.config import PretrainConfig

    load_config(file, PretrainConfig if file.stem.startswith("pretrain") else RunConfig)


def test_the_cluster_file_fits_the_schema_of_ray():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((ROOT / "cluster.yaml").read_text()), schema)
