import io
import time

from rich.console import Console

from bi_ray.runs import display as module
from bi_ray.runs.display import Display, figures_line
from bi_ray.runs.metrics import append_metrics, last_figures

ROW = {
    "step": 3,
    "reward": 0.234,
    "informative_share": 0.66,
    "loss": -0.0123,
    "tokens_per_s": 7248.4,
    "other": 1,
}


def shown(terminal: bool) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(Console(file=out, force_terminal=terminal, width=80)), out


def test_figures_line_a_row():
    assert figures_line(ROW) == "reward 0.23  informative 66%  loss -0.012  7,248 tok/s"


def test_a_terminal_of_80_columns_shows_the_bar_and_the_figures():
    display, out = shown(terminal=True)
    with display.task("RL of bridge", 120):
        display.set(3, 120, figures_line(ROW))
        assert display._bars is not None
        display._bars.refresh()
    text = out.getvalue()
    assert "3/120" in text
    assert "reward 0.23  informative 66%  loss -0.012  7,248 tok/s" in text
    assert text.rstrip().endswith("RL of bridge: 0 s")


def test_a_log_gets_a_line_now_and_then_and_no_bars(monkeypatch):
    display, out = shown(terminal=False)
    with display.task("RL of bridge", 120):
        display.set(1, 120, "too soon")
        monkeypatch.setattr(module, "_PLAIN_S", 0.01)
        time.sleep(0.02)
        display.set(3, 120, figures_line(ROW))
    lines = out.getvalue().splitlines()
    assert lines == [
        "RL of bridge: 3/120  reward 0.23  informative 66%  loss -0.012  7,248 tok/s",
        "RL of bridge: 0 s",
    ]


def test_the_last_validation_stays_in_the_line():
    validated = {
        "step": 2,
        "validation/val/greedy": 0.4,
        "validation/val_ood/greedy": 0.1,
        "validation/val/tokens": 9,
    }
    assert (
        figures_line(last_figures([validated, {"step": 3, "reward": 0.5}]))
        == "reward 0.50  val 40.0%  val_ood 10.0%"
    )
    assert last_figures([validated, {"step": 3}])["step"] == 3
    assert last_figures([]) == {}


def test_a_step_without_anything_to_learn_from_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TAIL_S", 0.01)
    display, out = shown(terminal=False)
    alike = {"step": 1, "learned_samples": 0, "groups": 4, "failed_groups": 0, "reward": 1.0}
    lost = {
        "step": 2,
        "learned_samples": 0,
        "groups": 0,
        "failed_groups": 3,
        "data_failures": 8,
        "reward": 0.0,
    }
    with display.training("RL", 9, tmp_path / "metrics.jsonl"):
        for row in (alike, lost, {"step": 3, "learned_samples": 5}):
            append_metrics(tmp_path / "metrics.jsonl", row)
        deadline = time.monotonic() + 10
        while "step 2" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
    said = " ".join(out.getvalue().split())
    assert said.count("changed nothing") == 2
    assert (
        "step 1 changed nothing: all samples of each of its 4 groups had the same reward (1.00)"
        in said
    )
    assert "step 2 changed nothing: no group was left" in said
    assert "3 were lost to workers, 8 samples had no verdict" in said


def test_a_training_is_followed_from_its_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TAIL_S", 0.01)
    monkeypatch.setattr(module, "_PLAIN_S", 0.0)
    display, out = shown(terminal=False)
    with display.training("SFT", 9, tmp_path / "metrics.jsonl"):
        (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 0.5}\n{"step": 5, "lo')
        deadline = time.monotonic() + 10
        while "4/9" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "SFT: 4/9  loss 0.500" in out.getvalue()
