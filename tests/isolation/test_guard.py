"""The guarded process by itself: its protocol, and what it leaves behind."""

import os
import subprocess
import sys
import threading
import time
from functools import partial

import psutil
import pytest

from bi_ray.isolation.child import Fault
from bi_ray.isolation.guard import Guard, Limits
from bi_ray.reasoning.graph import Graph

LIMITS = Limits(call_s=5, load_s=60, memory_mib=4096)


def double():
    return partial(lambda number: 2 * number if number >= 0 else 1 / 0)


def spawns():
    def call(_):
        child = subprocess.Popen(["sleep", "1000"])
        return child.pid

    return call


@pytest.fixture(scope="module")
def doubled():
    with Guard(double, LIMITS) as guard:
        yield guard


def test_results_come_in_the_order_of_the_items(doubled):
    numbers = list(range(3000))
    assert list(doubled.run(numbers)) == [2 * number for number in numbers]
    assert list(doubled.run([])) == []


def test_results_that_nobody_took_do_not_reach_the_next_caller(doubled):
    abandoned = doubled.run([1, 2, 3])
    assert next(abandoned) == 2
    abandoned.close()
    assert list(doubled.run([10, 11])) == [20, 22]


def test_a_large_batch_does_not_block(doubled):
    """Items and results are larger than the buffers of the connection."""
    with Guard(partial(partial, str.upper), LIMITS) as guard:
        texts = ["x" * 100_000] * 50
        assert list(guard.run(texts)) == [text.upper() for text in texts]


def test_a_fault_says_what_raised_and_where(doubled):
    before, fault, after = doubled.run([1, -1, 2])
    assert (before, after) == (2, 4)
    assert isinstance(fault, Fault)
    assert fault.reason == "the judgment of the response raised ZeroDivisionError: division by zero"
    assert fault.where == f"{__file__}:{double.__code__.co_firstlineno + 1}"


def reads_graph():
    return lambda text: Graph.from_json(text)


def test_a_fault_in_our_code_is_placed_where_the_user_called_it():
    with Guard(reads_graph, LIMITS) as guard:
        (fault,) = guard.run(["[]"])
    assert "not the JSON of a graph" in fault.reason
    assert fault.where == f"{__file__}:{reads_graph.__code__.co_firstlineno + 1}"


def test_what_a_call_started_ends_with_the_process():
    with Guard(spawns, LIMITS) as guard:
        (pid,) = guard.run([0])
        assert psutil.pid_exists(pid)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def dies_once(mark):
    def call(item):
        if item == "die" and not mark.exists():
            mark.touch()
            os._exit(1)
        return item

    return call


@pytest.mark.skipif(
    sys.platform != "linux", reason="only there the process ends with the thread that started it"
)
def test_a_process_that_ended_with_its_thread_is_replaced_and_no_death_is_counted(tmp_path):
    with Guard(partial(dies_once, tmp_path / "mark"), LIMITS) as guard:
        thread = threading.Thread(target=lambda: list(guard.run(["live"])))
        thread.start()
        thread.join()
        guard._process._process.wait(10)
        # its own death is the first of two that it may have
        assert list(guard.run(["die"])) == ["die"]


def test_a_plain_script_needs_no_main_guard_and_may_define_its_task(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import bi_ray\n"
        "from bi_ray.tasks.text import TextTask\n"
        "print('once')\n"
        "class Mine(TextTask):\n"
        "    def parse_answer(self, response):\n        return response.split()[-1]\n"
        "rows = [{'question': '?', 'answer': '5', 'response': 'it is 5'}]\n"
        "print(list(bi_ray.check(rows, task=Mine('response', None))['right']))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n") == ["once", "[True]", ""], done.stderr
