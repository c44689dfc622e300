import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from bi_ray.intervals import Interval
from bi_ray.report.picture import draw_picture, moving_average
from bi_ray.report.scores import StageSummary, TableRow
from bi_ray.report.tables import markdown_table, render_samples, render_table


def stage(*accuracy: float) -> StageSummary:
    return StageSummary(Interval(*accuracy), {1: 0.3}, 0.5, 0.0, 1.0, 0.9, 0)


TABLE = [
    TableRow(
        "vanilla",
        "test_id",
        1,
        500,
        stage(0.38, 0.34, 0.42),
        stage(0.4, 0.36, 0.44),
        Interval(0.02, -0.03, 0.07),
    ),
    TableRow(
        "bridge",
        "test_id",
        1,
        500,
        stage(0.36, 0.32, 0.4),
        stage(0.6, 0.56, 0.64),
        Interval(0.24, 0.19, 0.29),
    ),
    TableRow("bridge", "test_ood", 1, 500, stage(0.2, 0.17, 0.23), None, None),
]


def test_the_table_for_the_terminal():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_table(TABLE))
    text = console.export_text()
    assert "38.0 (34–42)" in text
    assert "+24.0 (+19.0 to +29.0)" in text
    assert "+2.0 (-3.0 to +7.0)" in text
    last = next(line for line in text.splitlines() if "test_ood" in line)
    assert "20.0 (17–23)" in last
    assert last.count(" - ") == 2


def test_the_table_of_samples_fits_a_terminal():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    before = StageSummary(
        Interval(0.3, 0.2, 0.4), {1: 0.231, 2: 0.3, 4: 0.494}, 0.63, 0.0, 0.996, 0.48, 0
    )
    after = StageSummary(
        Interval(0.4, 0.3, 0.5), {1: 0.387, 2: 0.5, 4: 0.6}, 0.58, 0.0, 1.0, 0.5, 0
    )
    console.print(
        render_samples([TableRow("bridge", "test_ood", 1, 500, before, after, None), TABLE[2]])
    )
    first, second = (line for line in console.export_text().splitlines() if "test_ood" in line)
    cells = [cell.strip() for cell in first.split("│")[3:-1]]
    assert cells == ["23 → 39", "49 → 60", "63 → 58", "48 → 50", "100 → 100"]
    assert [cell.strip() for cell in second.split("│")[3:-1]] == [
        "30 → -",
        "- → -",
        "50 → -",
        "90 → -",
        "100 → -",
    ]


def test_the_table_as_markdown():
    lines = markdown_table(TABLE).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert (
        "| bridge | test_id | 36.0 (32.0 to 40.0) | 60.0 (56.0 to 64.0) | +24.0 (+19.0 to +29.0) |"
        in lines[3]
    )
    assert "| 20.0 (17.0 to 23.0) | - | - | 30 → - |" in lines[4]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_picture_is_drawn(tmp_path, seeds):
    rng = np.random.default_rng(0)
    rewards = {
        "vanilla": [rng.random(30) for _ in range(seeds)],
        "bridge": [rng.random(30 + i) for i in range(seeds)],  # a run may be shorter
    }
    draw_picture(rewards, TABLE, tmp_path / "result.png", "Title")
    image = imread(tmp_path / "result.png")
    assert image.shape[1] == 1600  # twice the 800 pixels at which it is read
    colored = (np.ptp(image[..., :3], axis=-1) > 0.3).mean(axis=0)
    assert colored[:800].sum() > 0
    assert colored[800:].sum() > 0


def test_the_picture_before_rl(tmp_path):
    draw_picture({}, TABLE[2:], tmp_path / "result.svg")
    assert "bridge" in (tmp_path / "result.svg").read_text()


def test_themoving_average_equals_a_loop():
    values = np.random.default_rng(0).random(100)
    expected = [values[max(0, i - 4) : i + 1].mean() for i in range(100)]
    assert moving_average(values) == pytest.approx(expected)
    assert moving_average(values[:3]) == pytest.approx(values[:3])
