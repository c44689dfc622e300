"""The command `plan`: tables, JSON, and what its options replace."""

import json
from pathlib import Path

import pytest

from tests.command_line import ROOT, call, printed_error

PLANS = [("plan_7b", "qwen2.5-7b"), ("plan_70b", "llama-3-70b")]


def arguments_of(config, model):
    configs = ROOT / "configs"
    return [configs / f"{config}.yaml", "--model-config", configs / "models" / model]


@pytest.mark.parametrize(("config", "model"), PLANS)
def test_the_shipped_plans_are_printed(config, model):
    arguments = [*arguments_of(config, model), "--response-tokens", 1500]
    shown = call("plan", *arguments, columns=240)
    assert "rollout: decode" in shown
    assert "learner: forward and backward" in shown
    assert "samples/s" in shown
    plan = json.loads(call("plan", *arguments, "--json"))
    assert plan["hardware"]["name"] == "h100"
    assert plan["response_tokens"] == 1500
    assert plan["step_s"] > 0
    verdict = "It fits." if plan["fits"] else "It does NOT fit."
    assert verdict in shown
    for problem in plan["problems"]:
        assert problem in shown


@pytest.mark.parametrize(
    ("config", "model", "hardware"), [(*PLANS[0], "h100"), (*PLANS[1], "h200")]
)
def test_the_docs_show_what_is_printed(monkeypatch, config, model, hardware):
    monkeypatch.chdir(ROOT)
    command = f"configs/{config}.yaml --model-config configs/models/{model} --hardware {hardware}"
    command += " --prompt-tokens 300 --response-tokens 1500"
    lines = call("plan", *command.split(), columns=130).rstrip().splitlines()
    shown = "\n".join(line.rstrip() for line in lines)
    assert f"$ bi-ray plan {command}\n{shown}\n" in Path("docs/performance.md").read_text()


def test_a_plan_for_a_cpu_reads_the_models_own_directory(monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = json.loads(call("plan", "configs/quickstart.yaml", "--json", "--measure"))
    assert plan["hardware"]["name"].startswith("this machine")
    assert plan["fits"]
    assert plan["parameters"] == 818_304


def test_options_replace_fields_of_the_hardware():
    arguments = [*arguments_of("plan_7b", "qwen2.5-7b"), "--json", "--gpus", 4, "--nodes", 1]
    slow = json.loads(call("plan", *arguments, "--training-mfu", 0.2))
    fast = json.loads(call("plan", *arguments, "--training-mfu", 0.4))
    assert training_seconds(slow) == pytest.approx(2 * training_seconds(fast), rel=0.02)
    assert any("1 nodes have 4" in problem for problem in slow["problems"])


def training_seconds(plan):
    for phase in plan["phases"]:
        if phase["name"].startswith("learner: forward"):
            return phase["seconds"]
    raise AssertionError("the plan has no training phase")


def test_a_missing_model_is_reported_with_the_option_to_set(monkeypatch, capsys):
    output = printed_error(monkeypatch, capsys, "plan", ROOT / "configs" / "plan_7b.yaml")
    assert "--model-config" in output
