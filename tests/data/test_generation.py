"""Problems in bulk: different from one another, in order, whoever makes them; processes end with
their parent.
"""

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bi_ray.config.tasks import PromptBenchConfig
from bi_ray.data.generation import distinct_problems, items, items_of_processes
from bi_ray.data.seen import Seen
from bi_ray.rows.rejects import DataError
from bi_ray.tasks.registry import build_task

ROOT = Path(__file__).parents[2]
SMALL = PromptBenchConfig(
    name_pool=48,
    max_abs_value=100,
    sets={"sft": {"depth": 2, "redundant_nodes": 1}, "rl": {"depth": 1}},
)


@given(
    st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 50), max_size=60),
    st.lists(st.integers(0, 50) | st.sampled_from([2**63 - 1, 2**63, 2**64 - 1]), max_size=200),
)
def test_seen_is_a_set(before, numbers):
    seen, truth = Seen(np.array(before, dtype=np.uint64)), set(before)
    for number in numbers:
        assert seen.add(number) == (number not in truth)
        truth.add(number)
        assert len(seen) == len(truth)


def test_seen_remembers_what_it_has_sorted_away():
    rng = np.random.default_rng(0)
    numbers = [int(n) for n in rng.integers(0, 2**64, 20_000, dtype=np.uint64)]
    seen = Seen()
    assert all(seen.add(number) for number in numbers)
    assert not any(seen.add(number) for number in numbers)
    assert len(seen) == 20_000


def test_processes_give_the_items_in_order():
    alone = list(islice(items(build_task(SMALL, 3), "sft", 10), 150))
    together = items_of_processes(SMALL, 3, "sft", 3, 10)
    assert list(islice(together, 150)) == alone
    together.close()
    assert [index for index, _ in alone] == list(range(10, 160))


def test_problems_are_those_of_the_task_without_the_repeated_ones():
    task = build_task(SMALL, 0)
    found = list(distinct_problems(SMALL, 0, "sft", 400))
    hashes, expected, index = set(), [], 0
    while len(expected) < 400:
        digest = task.problem("sft", index).graph.hash()
        if digest not in hashes:
            expected.append((index, f"sft-{index}"))
        hashes.add(digest)
        index += 1
    assert [(index, row["id"]) for index, row in found] == expected
    assert index > 400  # a depth of 2 does repeat itself, or nothing would be left out here


def test_a_set_goes_on_where_it_was_left():
    whole = list(distinct_problems(SMALL, 0, "sft", 300))
    first = whole[:200]
    seen = Seen(np.array([int(row["hash"], 16) for _, row in first], dtype=np.uint64))
    rest = list(distinct_problems(SMALL, 0, "sft", 300, first=first[-1][0] + 1, seen=seen))
    assert first + rest == whole


def test_a_fault_of_the_configuration_shows_as_itself():
    with pytest.raises(DataError, match="raise its depth or redundant_nodes"):
        list(distinct_problems(SMALL, 0, "rl", 500, processes=2))


_ENDLESS = """
from bi_ray.config import PromptBenchConfig
from bi_ray.data.generation import items_of_processes
if __name__ == "__main__":
    config = PromptBenchConfig(name_pool=48, sets={"sft": {"depth": 3}})
    for index, _ in items_of_processes(config, 0, "sft", 2):
        if index == 0:
            print("begun", flush=True)
"""


def test_processes_end_with_their_parent(tmp_path):
    (tmp_path / "endless.py").write_text(_ENDLESS)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "endless.py")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as parent:
        assert parent.stdout.readline() == "begun\n"
        children = [
            int(pid)
            for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        ]
        assert len(children) >= 2
        parent.send_signal(signal.SIGKILL)
        parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < deadline, "processes outlived their parent"
        time.sleep(0.1)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
