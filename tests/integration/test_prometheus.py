"""The figures of a training, scraped from the metrics endpoint of a real Ray node."""

import time
import urllib.request

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from actors.prometheus import RayMetrics
from bi_ray.tracking.base import Tracked

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("ray_local")]


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, sample.labels["arm"]): (sample.value, sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ray_bi_ray_")
    }


def test_figures_are_gauges_with_the_names_of_run_and_arm(tmp_path):
    for arm, shift in (("bridge", 0.0), ("vanilla", 0.125)):
        tracker = RayMetrics()
        tracker.begin(Tracked("quick", "0a1b", "rl", arm, tmp_path, {}))
        tracker.log(0, {"validation/val/pass_at_4": 0.25})
        tracker.log(1, {"reward": 0.5 + shift})
        tracker.log(2, {"reward": 0.75 + shift, "validation/val/pass_at_4": 0.5})
        tracker.end()
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline = time.monotonic() + 90
    found = {}
    while ("ray_bi_ray_training_steps_total", "vanilla") not in found:
        assert time.monotonic() < deadline, found
        time.sleep(1)
        found = scrape(port)
    values = {key: value for key, (value, _) in found.items()}
    assert values["ray_bi_ray_reward", "bridge"] == 0.75
    assert values["ray_bi_ray_reward", "vanilla"] == 0.875
    assert values["ray_bi_ray_validation_val_pass_at_4", "bridge"] == 0.5
    assert values["ray_bi_ray_step", "bridge"] == 2
    assert values["ray_bi_ray_training_steps_total", "bridge"] == 2
    labels = found["ray_bi_ray_reward", "bridge"][1]
    assert (labels["run"], labels["run_id"], labels["stage"]) == ("quick", "0a1b", "rl")
