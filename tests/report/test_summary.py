import json

import pytest
from report_run import config_of, write_run
from rich.console import Console

from bi_ray.files.errors import RunError
from bi_ray.report.source import distinct_labels, find_runs
from bi_ray.report.summary import summarize_runs
from bi_ray.report.writing import show_summary, write_report, write_summary
from bi_ray.runs.directory import keep_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "first"
    write_run(run, config_of())
    return run


def test_write_summary_writes_the_whole_folder_and_ends_with_the_path_of_the_report(
    finished, tmp_path
):
    summary = write_summary(config_of(), [finished], tmp_path)
    names = {"report.html", "result.md", "result.svg", "summary.json"}
    assert {file.name for file in (tmp_path / "report").iterdir()} == names
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_summary(summary, console, tmp_path)
    lines = console.export_text().splitlines()
    closing = lines[lines.index(next(line for line in lines if line.startswith("Always"))) :]
    assert next(line for line in closing if ":" in line and "Always" not in line) == (
        f"The report, for a browser: {tmp_path}/report/report.html"
    )


def test_every_interval_in_the_summary_is_a_mapping(finished, tmp_path):
    write_summary(config_of(), [finished], tmp_path)
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    row = summary["table"][0]
    intervals = [row["sft"]["accuracy"], row["rl"]["accuracy"], row["gain"]]
    intervals.append(summary["difference_of_gains"][0]["difference"])
    for interval in intervals:
        assert list(interval) == ["value", "low", "high"]
    assert list(row["sft"]["pass_at"]) == ["1", "2", "4"]


def test_a_run_under_way_is_summarized_as_far_as_it_is(tmp_path):
    config = config_of()
    write_run(tmp_path / "run", config, stages=("eval_sft",))
    summary = summarize_runs(config, [tmp_path / "run"])
    assert [(row.arm, row.set, row.rl, row.gain) for row in summary.table] == [
        (arm, name, None, None) for arm in ("vanilla", "bridge") for name in ("test_id", "test_ood")
    ]
    assert summary.difference_of_gains == []


def test_a_run_that_has_only_begun_gets_a_page(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    keep_config(config_of(), run, replace=False)
    page = write_report([run], None)
    assert "No answer yet" in page.read_text()
    assert not (run / "report/result.svg").exists()
    assert json.loads((run / "report/summary.json").read_text())["table"] == []


def test_a_study_is_its_seeds(tmp_path, finished):
    for seed in (0, 1, 10, 2):
        write_run(tmp_path / "study" / f"seed_{seed}", config_of(), seed, problems=4, sampled=2)
    _, runs = find_runs(tmp_path / "study")
    assert [run.name for run in runs] == ["seed_0", "seed_1", "seed_2", "seed_10"]
    page = write_report([tmp_path / "study"], None)
    assert page == tmp_path / "study/report/report.html"
    assert json.loads((page.parent / "summary.json").read_text())["seeds"] == 4


def test_several_runs_are_compared_on_one_page(tmp_path, finished, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "second", config_of(arms=["bridge"]), seed=1)
    page = write_report([finished, tmp_path / "second"], None)
    assert page.name == "comparison.html"
    text = page.read_text()
    for label in ("first: vanilla", "first: bridge", "second: bridge"):
        assert label in text
    assert not (tmp_path / "second/report").exists()
    assert write_report([finished], tmp_path / "new/page.html").exists()


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"nowhere: no such run$"):
        write_report([tmp_path / "nowhere"], None)
    with pytest.raises(RunError, match=r"neither config\.yaml nor seed_"):
        write_report([tmp_path], None)


def test_labels_are_told_apart(tmp_path):
    assert distinct_labels([tmp_path / "a/run", tmp_path / "b/run", tmp_path / "c"]) == [
        "a/run",
        "b/run",
        "c",
    ]


def test_the_configuration_of_a_run_is_kept_and_replaced_only_when_asked(tmp_path):
    first, second = config_of(steps=3), config_of(steps=4)
    keep_config(first, tmp_path, replace=False)
    keep_config(second, tmp_path, replace=False)
    assert find_runs(tmp_path)[0] == first
    keep_config(second, tmp_path, replace=True)
    assert find_runs(tmp_path)[0] == second
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
