import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bi_ray.cli import main as cli

ROOT = Path(__file__).parents[2]
PLANS = [("plan_7b", "qwen2.5-7b"), ("plan_70b", "llama-3-70b")]


def call(*arguments, columns=240):
    result = CliRunner().invoke(
        cli.app, ["plan", *map(str, arguments)], env={"COLUMNS": str(columns)}
    )
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("config", "model"), PLANS)
def test_the_shipped_plans_are_printed(config, model):
    arguments = [
        ROOT / "configs" / f"{config}.yaml",
        "--model-config",
        ROOT / "configs" / "models" / model,
    ]
    shown = call(*arguments, "--response-tokens", 1500)
    assert "rollout: decode" in shown
    assert "learner: forward and backward" in shown
    assert "samples/s" in shown
    plan = json.loads(call(*arguments, "--response-tokens", 1500, "--json"))
    assert plan["hardware"]["name"] == "h100"
    assert plan["response_tokens"] == 1500
    assert plan["step_s"] > 0
    assert f"{'It fits.' if plan['fits'] else 'It does NOT fit.'}" in shown
    for problem in plan["problems"]:
        assert problem in shown


@pytest.mark.parametrize(
    ("config", "model", "hardware"), [(*PLANS[0], "h100"), (*PLANS[1], "h200")]
)
def test_the_docs_show_what_is_printed(monkeypatch, config, model, hardware):
    monkeypatch.chdir(ROOT)
    command = f"configs/{config}.yaml --model-config configs/models/{model} --hardware {hardware}"
    command += " --prompt-tokens 300 --response-tokens 1500"
    shown = "\n".join(
        line.rstrip() for line in call(*command.split(), columns=130).rstrip().splitlines()
    )
    assert f"$ bi-ray plan {command}\n{shown}\n" in Path("docs/performance.md").read_text()


def test_a_plan_for_a_cpu_reads_the_models_own_directory(monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = json.loads(call("configs/quickstart.yaml", "--json", "--measure"))
    assert plan["hardware"]["name"].startswith("this machine")
    assert plan["fits"]
    assert plan["parameters"] == 818_304


def test_options_replace_what_the_hardware_says():
    arguments = [
        ROOT / "configs" / "plan_7b.yaml",
        "--model-config",
        ROOT / "configs" / "models" / "qwen2.5-7b",
    ]
    one, other = (
        json.loads(call(*arguments, "--json", "--training-mfu", mfu, "--gpus", 4, "--nodes", 1))
        for mfu in (0.2, 0.4)
    )
    seconds = [
        next(
            phase["seconds"]
            for phase in plan["phases"]
            if phase["name"].startswith("learner: forward")
        )
        for plan in (one, other)
    ]
    assert seconds[0] == pytest.approx(2 * seconds[1], rel=0.02)
    assert any("1 nodes have 4" in problem for problem in one["problems"])


def test_a_model_that_is_not_there_is_said(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bi-ray", "plan", str(ROOT / "configs" / "plan_7b.yaml")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "--model-config" in capsys.readouterr().out
