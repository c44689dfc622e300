"""What the page carries: the chosen samples, the charts, and a text that nothing in the data can
break out of.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest
from report_run import NASTY, config_of, measured, with_measured, write_run

from bi_ray.report import charts, influence, samples
from bi_ray.report.page import render_page
from bi_ray.report.samples import collect_samples
from bi_ray.report.sentences import answer
from bi_ray.report.series import all_series
from bi_ray.report.source import Source
from bi_ray.report.summary import summarize_runs


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    config = config_of()
    runs = tuple(folder / f"seed_{seed}" for seed in (0, 1))
    for seed, run in enumerate(runs):
        write_run(run, config, seed)
    summary = with_measured(summarize_runs(config, runs), measured(config))
    return Source("study", config, runs, summary)


def samples_of(book):
    return [book["cells"][sample["cell"]] | sample for sample in book["samples"]]


def page_data(text):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    )


def test_samples_are_whole_problems_of_every_seed_and_within_the_quota(study):
    book = collect_samples(all_series([study])).as_json()
    cells = Counter((s["arm"], s["stage"], s["set"], s["mode"]) for s in samples_of(book))
    assert len(cells) == 2 * 2 * 2 * 2
    # all there are
    assert {key[-1]: count for key, count in cells.items()} == {"greedy": 80, "sampled": 160}
    groups = Counter(
        (s["arm"], s["stage"], s["set"], s["seed"], s["problem"])
        for s in samples_of(book)
        if s["mode"] == "sampled"
    )
    assert set(groups.values()) == {8}
    assert book == collect_samples(all_series([study])).as_json()


def test_quota_and_room_are_kept(study, monkeypatch):
    monkeypatch.setattr(samples, "QUOTAS", {"greedy": 5, "sampled": 20})
    book = collect_samples(all_series([study])).as_json()
    counts = Counter(
        (s["arm"], s["stage"], s["set"], s["mode"], s["seed"]) for s in samples_of(book)
    )
    assert {(key[3], key[4]): count for key, count in counts.items()} == {
        ("greedy", 0): 3, ("greedy", 1): 2, ("sampled", 0): 8, ("sampled", 1): 8,
    }  # fmt: skip
    monkeypatch.setattr(samples, "ROOM", 50_000)
    small = collect_samples(all_series([study])).samples
    # the pointers into the book come on top
    assert 20_000 < len(json.dumps(small, separators=(",", ":"))) < 55_000


def test_parts_join_to_the_response_and_carry_its_marks(study):
    book = collect_samples(all_series([study])).as_json()
    rows = [
        json.loads(line)
        for line in (study.runs[0] / "eval_sft/bridge/test_id.jsonl").read_text().splitlines()
    ]
    shown = [
        s
        for s in samples_of(book)
        if (s["arm"], s["stage"], s["set"], s["seed"]) == ("bridge", "SFT", "test_id", 0)
    ]  # fmt: skip
    by_key = {(s["mode"], book["problems"][s["problem"]]["id"], s["sample"]): s for s in shown}
    assert len(by_key) == len(rows)
    wrong_lines = 0
    for row in rows:
        sample = by_key[row["mode"], row["id"], row["sample"]]
        assert "".join(part[0] for part in sample["parts"]) == row["response"]
        assert sum(part[1:2] == ["reflection"] for part in sample["parts"]) == row["reflections"]
        wrong = "".join(part[0] for part in sample["parts"] if part[2:] == [True])
        wrong_lines += bool(wrong)
        if row["trace_valid"]:
            assert not wrong
        elif "no line of a known form" in row["trace_fault"]:
            assert repr(wrong) in row["trace_fault"]
    assert wrong_lines > 5


@pytest.mark.parametrize(
    "build", [charts.gains, influence.by_group, influence.by_behavior, influence.during_rl]
)
def test_charts_are_valid_for_plotly(study, build):
    chart = build(all_series([study]))
    for variant in chart["variants"].values():
        go.Figure(variant)  # refuses what plotly.js would ignore


@pytest.mark.parametrize(
    "build",
    [
        charts.histograms,
        influence.all_against_all,
        influence.heat_maps,
        influence.predicted_realized,
    ],
)
def test_panels_are_valid_for_plotly_and_there_is_one_per_arm(study, build):
    panels = build(all_series([study]))
    assert [one.arm for one in panels] == ["vanilla", "bridge"]
    vanilla, bridge = (panel["variants"] for panel in panels.values())
    for name in vanilla:  # panels are compared by eye
        ranges = [
            [one[name]["layout"][axis].get("range") for axis in ("xaxis", "yaxis")]
            for one in (vanilla, bridge)
        ]
        assert ranges[0] == ranges[1]
    for panel in panels.values():
        for variant in panel["variants"].values():
            go.Figure(variant)


def test_charts_show_the_numbers_of_the_data(study):
    series = all_series([study])
    group = influence.by_group(series)["variants"]["mean/k_minus"]["data"][1]
    expected = [
        entry.k_minus.value
        for entry in study.summary.readiness["bridge"].influence["mean"].groups
        if entry.k_minus is not None
    ]
    assert group["y"] == pytest.approx(expected, rel=1e-4)
    assert group["error_y"]["array"] == pytest.approx([0.3 * 0.02 * 3] * 8, rel=1e-3)
    histogram = charts.histograms(series)[series[0]]["variants"][""]["data"][0]
    assert sum(histogram["y"]) == pytest.approx(100, abs=0.01)
    assert histogram["customdata"] == study.summary.readiness["vanilla"].accuracy.histogram


def test_a_group_of_few_queries_is_hollow_and_the_noise_floor_is_in_sight(study):
    parts = measured(study.config)
    parts["readiness"]["vanilla"]["influence"]["sum"]["groups"][3]["queries"] = 4
    parts["realized"]["vanilla"]["noise_floor"] = 0.5
    series = all_series([replace(study, summary=with_measured(study.summary, parts))])
    vanilla, bridge = influence.by_group(series)["variants"]["sum/dj"]["data"]
    assert vanilla["marker"]["symbol"] == [*["circle"] * 3, "circle-open", *["circle"] * 5]
    assert set(bridge["marker"]["symbol"]) == {"square"}
    for panel in influence.predicted_realized(series).values():
        assert list(panel["variants"]) == ["odd", "step"]
        for variant in panel["variants"].values():
            low, high = variant["layout"]["yaxis"]["range"]
            assert low < -0.5 < 0.5 < high


def test_a_direction_that_is_mostly_noise_can_be_told(study):
    text = render_page([study])
    assert text.count('<td class="n">0.123</td>') == len(study.config.arms)
    parts = measured(study.config)
    for readiness in parts["readiness"].values():
        readiness["halves_cosine"] = {"sum": None, "mean": None}
    summary = with_measured(study.summary, parts)
    assert '<td class="n">0.123</td>' not in render_page([replace(study, summary=summary)])


def test_one_estimator_alone_is_enough(study):
    parts = measured(study.config)
    for readiness in parts["readiness"].values():
        del readiness["influence"]["sum"], readiness["all_against_all"]
    summary = with_measured(study.summary, parts)
    text = render_page([replace(study, summary=summary)])
    assert set(page_data(text)["charts"]["groups"]["variants"]) == {
        "mean/dj",
        "mean/k_plus",
        "mean/k_minus",
    }
    assert 'value="sum"' not in text
    assert text.count("Nothing to show.") == 1
    forecast = answer(summary)[3]
    assert "dJ was" in forecast
    assert "2.4 (" not in forecast  # of the sums, which are not there


def test_curves_are_means_over_the_seeds_that_got_so_far(study, tmp_path):
    config = config_of(arms=["vanilla"])
    for seed, rewards in enumerate([[0.2, 0.4, 0.6], [0.4]]):
        file = tmp_path / str(seed) / ("work/rl" if seed else "rl") / "vanilla/metrics.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text(
            "".join(json.dumps({"step": i + 1, "reward": r}) + "\n" for i, r in enumerate(rewards))
        )
    source = Source("run", config, (tmp_path / "0", tmp_path / "1"), study.summary)
    chart, offered = charts.curves(all_series([source]))
    assert list(offered) == ["rl"]
    first, second, mean = chart["variants"]["rl.reward"]["data"]
    assert (first["y"], second["y"]) == ([0.2, 0.4, 0.6], [0.4])
    assert mean["y"] == pytest.approx([0.3, 0.4, 0.6])


def test_validations_are_a_line_per_arm_and_set_and_a_variant_per_figure(study, tmp_path):
    chart, offered = charts.validations(all_series([study]))
    assert list(offered.items())[:3] == [
        ("greedy", "greedy accuracy"),
        ("pass_at_2", "pass@2"),
        ("pass_at_16", "pass@16"),
    ]
    assert set(offered) == {"greedy", "pass_at_2", "pass_at_16", "truncated", "failures"}
    lines = chart["variants"]["greedy"]["data"]
    assert [line["name"] for line in lines] == [
        f"{arm}, {name}" for arm in ("vanilla", "bridge") for name in ("val", "val_ood")
    ]
    runs = study.metrics("rl", "bridge")
    expected = [
        [row["validation/val_ood/greedy"] for row in run if row["step"] in (0, 10, 20, 30)]
        for run in runs
    ]
    assert lines[3]["x"] == [0, 10, 20, 30]
    assert lines[3]["y"] == pytest.approx(
        [100 * sum(values) / len(runs) for values in zip(*expected, strict=True)]
    )
    assert lines[0]["line"]["dash"] != lines[1]["line"]["dash"]
    assert lines[0]["line"]["color"] == lines[1]["line"]["color"] != lines[2]["line"]["color"]
    file = tmp_path / "rl/bridge/metrics.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"step": 1, "reward": 0.5}\n')
    assert charts.validations(all_series([replace(study, runs=(tmp_path,))])) == (None, {})


class Elements(HTMLParser):
    """Tags of a page with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_nothing_in_the_data_becomes_markup_and_nothing_is_loaded(study):
    summary = replace(study.summary, code_versions=[NASTY])
    text = render_page([replace(study, label=NASTY, summary=summary)])
    elements = Elements(text)
    assert "img" not in [tag for tag, _ in elements.found]
    assert any(
        NASTY in part[0] for sample in page_data(text)["samples"] for part in sample["parts"]
    )
    loaded = [
        value
        for _, attributes in elements.found
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert all(value.startswith(("#", "data:,")) for value in loaded)
    assert not [tag for tag, _ in elements.found if tag in ("iframe", "object", "embed", "base")]


def test_only_the_scripts_that_the_policy_names_can_run(study):
    text = render_page([study])
    policy = next(
        a["content"]
        for t, a in Elements(text).found
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    assert re.findall(r"'sha256-(.*?)'", policy) == hashes.copy() != []
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert len(text) < 8_000_000


def test_a_run_without_any_measurement_says_so_in_every_section(tmp_path):
    config = config_of(arms=["vanilla"])
    write_run(tmp_path / "run", config, stages=())
    text = render_page(
        [Source("young", config, (tmp_path / "run",), summarize_runs(config, [tmp_path / "run"]))]
    )
    assert "No answer yet" in text
    assert "Still missing: eval_sft/vanilla, rl/vanilla, eval_rl/vanilla" in text
    assert text.count("Nothing to show.") == 9
