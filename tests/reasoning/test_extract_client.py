"""The calls against a real HTTP server that fails as servers do."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bi_ray.config.extraction import ExtractConfig
from bi_ray.reasoning.extract import SCHEMA
from bi_ray.reasoning.extract_client import ExtractError, extract, extract_rows
from tests.reasoning.openai_server import Endpoint, row, serving

ROWS = [row(a, 5) for a in range(10, 22)]


def options(endpoint: Endpoint, **more) -> ExtractConfig:
    base = {
        "endpoint": endpoint.url,
        "model": "scripted",
        "api_key_env": "",
        "concurrency": 4,
        "timeout_s": 30,
    }
    return ExtractConfig.model_validate({**base, "retries": 2, **more})


def answers(result) -> list:
    return [(row.number, row.graph.answer) for row in result.rows]


ALL = [(number, number + 15) for number in range(len(ROWS))]


def test_every_row_is_asked_once_by_schema_and_within_the_limit(tmp_path):
    with serving(Endpoint(seconds=0.05)) as endpoint:
        seen = []
        result = extract(
            ROWS, options(endpoint), tmp_path, lambda done, total: seen.append((done, total))
        )
    assert answers(result) == ALL
    assert result.rejects == []
    assert seen == [(done, 12) for done in range(1, 13)]
    assert endpoint.most_in_flight == 4
    assert set(endpoint.asked.values()) == {1}
    for request in endpoint.requests:
        assert request["response_format"]["json_schema"]["schema"] == SCHEMA
        assert request["response_format"]["json_schema"]["strict"] is True
        assert (request["temperature"], request["max_tokens"]) == (0, 4096)


def test_a_model_that_wants_other_fields(tmp_path):
    with serving(Endpoint()) as endpoint:
        extract(
            ROWS[:1],
            options(endpoint, token_limit_field="max_completion_tokens", temperature=None),
            tmp_path,
        )
    assert endpoint.requests[0]["max_completion_tokens"] == 4096
    assert not {"max_tokens", "temperature"} & set(endpoint.requests[0])


@pytest.mark.parametrize(
    "fault", ["429", "500", "503", "hang", "broken body", "web page", "no choices", "truncated"]
)
def test_what_passes_is_asked_again(tmp_path, fault):
    with serving(Endpoint({12: [fault]})) as endpoint:
        result = extract(ROWS, options(endpoint, timeout_s=2 if fault == "hang" else 30), tmp_path)
    assert answers(result) == ALL
    assert endpoint.asked[12] == 2
    assert sum(endpoint.asked.values()) == len(ROWS) + 1
    if fault == "429":  # it asked for a second
        assert endpoint.times[12][1] - endpoint.times[12][0] >= 1


def test_retries_wait_longer_each_time(tmp_path):
    with serving(Endpoint({12: ["500"] * 3})) as endpoint:
        assert answers(extract(ROWS[2:3], options(endpoint, retries=3), tmp_path)) == [(0, 17)]
    first, second, third, fourth = endpoint.times[12]
    # 0.5 s, 1 s, 2 s, each shortened at random by a quarter at the most
    assert fourth - third > second - first


@pytest.mark.parametrize(
    ("fault", "asked", "reason"),
    [
        ("wrong", 1, "total is given as 17, but first - bought is 7"),
        ("length", 1, "the model's answer was cut off at 4096 tokens (max_tokens)"),
        ("400", 1, "the endpoint refuses the request: Error code: 400"),
        ("truncated", 3, "the model's answer is not JSON"),
        ("500", 3, "the endpoint failed 3 times: Error code: 500"),
        ("hang", 3, "the endpoint failed 3 times: Request timed out"),
    ],
)
def test_what_stays_is_a_reject_with_its_reason_and_the_others_go_on(
    tmp_path, fault, asked, reason
):
    with serving(Endpoint({12: [fault] * 3})) as endpoint:
        result = extract(ROWS, options(endpoint, timeout_s=2 if fault == "hang" else 30), tmp_path)
    assert answers(result) == [pair for pair in ALL if pair[0] != 2]
    (reject,) = result.rejects
    assert reject.number == 2
    assert reject.reason.startswith(reason)
    assert endpoint.asked[12] == asked


def test_what_was_answered_is_never_asked_again_and_what_was_not_is(tmp_path):
    with serving(
        Endpoint({12: ["wrong"], 13: ["500"] * 3, 14: ["truncated"] * 3, 15: ["length"]})
    ) as endpoint:
        first = extract(ROWS, options(endpoint), tmp_path)
        asked = dict(endpoint.asked)
        second = extract(ROWS, options(endpoint), tmp_path)
    assert [reject.number for reject in first.rejects] == [2, 3, 4, 5]
    assert [reject.number for reject in second.rejects] == [2, 5]
    again = {number: endpoint.asked[number] - asked[number] for number in asked}
    assert {number for number, times in again.items() if times} == {13, 14}


def test_the_cache_knows_model_row_and_limits(tmp_path):
    with serving(Endpoint()) as endpoint:
        for more, asked in (
            ({}, 1),
            ({}, 1),
            ({"model": "other"}, 2),
            ({"max_tokens": 9}, 3),
            ({"retries": 1}, 3),
        ):
            extract(ROWS[:1], options(endpoint, **more), tmp_path)
            assert len(endpoint.requests) == asked
        extract([{**ROWS[0], "answer": "15.0"}], options(endpoint), tmp_path)
        assert len(endpoint.requests) == 4


def test_a_damaged_cache_is_asked_again(tmp_path):
    with serving(Endpoint()) as endpoint:
        extract(ROWS, options(endpoint), tmp_path)
        files = sorted(tmp_path.rglob("*.json"))
        assert len(files) == len(ROWS)
        for content, file in zip(("", "{", "[1]", '{"content": 3}'), files, strict=False):
            file.write_text(content)
        assert answers(extract(ROWS, options(endpoint), tmp_path)) == ALL
    assert len(endpoint.requests) == len(ROWS) + 4
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_refused_key_or_model_ends_it_and_names_the_option(tmp_path):
    for fault in ("401", "404"):
        with serving(Endpoint({-1: [fault] * 100})) as endpoint:
            with pytest.raises(
                ExtractError, match=rf"refuses model 'scripted'.*scripted {fault}.*api_key_env"
            ):
                extract(ROWS, options(endpoint), tmp_path)
            assert len(endpoint.requests) <= 4


def test_an_endpoint_that_fails_for_good_ends_it_and_the_same_call_goes_on(tmp_path):
    faults = {a: ["for ever"] for a in range(14, 22)}
    with serving(Endpoint(faults)) as endpoint:
        with pytest.raises(
            ExtractError, match=r"failed for 2 rows in a row, each tried 1 times.*scripted outage"
        ):
            extract(ROWS, options(endpoint, concurrency=1, retries=0), tmp_path)
        asked = len(endpoint.requests)
        assert asked < len(ROWS)
        endpoint.faults = {}
        assert answers(extract(ROWS, options(endpoint, concurrency=1, retries=0), tmp_path)) == ALL
    assert len(endpoint.requests) == asked + 8


def test_nobody_at_the_address(tmp_path):
    nobody = ExtractConfig(
        endpoint="http://127.0.0.1:9/v1", model="m", api_key_env="", retries=0, concurrency=2
    )
    with pytest.raises(ExtractError, match="Connection error"):
        extract(ROWS, nobody, tmp_path)


def test_the_key_comes_from_the_environment(tmp_path, monkeypatch):
    with serving(Endpoint()) as endpoint:
        monkeypatch.delenv("A_KEY", raising=False)
        with pytest.raises(ExtractError, match="A_KEY is not set"):
            extract(ROWS, options(endpoint, api_key_env="A_KEY"), tmp_path)
        assert endpoint.requests == []
        monkeypatch.setenv("A_KEY", "of the test")
        extract(ROWS[:1], options(endpoint, api_key_env="A_KEY"), tmp_path)
    assert endpoint.keys == {"Bearer of the test"}
    assert "of the test" not in "".join(file.read_text() for file in tmp_path.rglob("*.json"))


def test_bad_rows_are_rejects_and_cost_no_request(tmp_path):
    rows = [
        {"question": "", "answer": "1"},
        ROWS[0],
        {"question": "What?", "answer": "1"},
        {"answer": "1"},
    ]
    with serving(Endpoint()) as endpoint:
        result = extract(rows, options(endpoint), tmp_path)
    assert answers(result) == [(1, 15)]
    assert [(reject.number, reject.reason.split(",")[0]) for reject in result.rejects] == [
        (0, "no question"),
        (2, "no chain_of_thought"),
        (3, "no question"),
    ]
    assert len(endpoint.requests) == 1


def test_no_rows(tmp_path):
    with serving(Endpoint()) as endpoint:
        assert extract([], options(endpoint), tmp_path) == ([], [])


def test_inside_a_running_loop_and_a_fault_of_the_caller_is_raised_as_it_is(tmp_path):
    def stop(done: int, total: int) -> None:
        raise LookupError("enough")

    with serving(Endpoint()) as endpoint:
        assert answers(asyncio.run(extract_rows(ROWS, options(endpoint), tmp_path))) == ALL
        with pytest.raises(LookupError, match="enough"):
            asyncio.run(extract_rows(ROWS, options(endpoint), tmp_path, stop))


PROGRAM = """
import json, sys
from pathlib import Path
from bi_ray.config import ExtractConfig
from bi_ray.reasoning.extract_client import extract
rows, options, cache = json.loads(sys.argv[1])
config = ExtractConfig(**options)
found = extract(rows, config, Path(cache), lambda done, total: print(done, flush=True))
print([row.graph.answer for row in found.rows])
"""


def program(rows, options: ExtractConfig, cache: Path) -> subprocess.Popen:
    arguments = json.dumps([rows, options.model_dump(), str(cache)])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, arguments], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_process_goes_on_where_it_stopped(tmp_path):
    rows = [row(a, 5) for a in range(10, 50)]
    with serving(Endpoint(seconds=0.1)) as endpoint:
        first = program(rows, options(endpoint, concurrency=2), tmp_path)
        assert first.stdout is not None
        while int(first.stdout.readline()) < 10:
            pass
        os.kill(first.pid, signal.SIGKILL)
        assert first.wait(10) == -signal.SIGKILL
        first.stdout.close()
        time.sleep(0.3)  # for requests that are still on their way
        asked = len(endpoint.requests)
        assert 10 <= asked < 40
        assert answers(extract(rows, options(endpoint), tmp_path)) == [
            (n, n + 15) for n in range(40)
        ]
        # those in flight were lost
        assert 40 - asked <= len(endpoint.requests) - asked <= 40 - asked + 3


def test_two_processes_share_a_cache(tmp_path):
    with serving(Endpoint(seconds=0.02)) as endpoint:
        both = [program(ROWS, options(endpoint), tmp_path) for _ in range(2)]
        outputs: list[str] = []
        readers = [
            threading.Thread(target=lambda p=p: outputs.append(p.communicate()[0])) for p in both
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        assert [process.returncode for process in both] == [0, 0]
    assert {output.splitlines()[-1] for output in outputs} == {str([answer for _, answer in ALL])}
    assert len(list(tmp_path.rglob("*.json"))) == len(ROWS)
    assert not list(tmp_path.rglob("*.tmp"))
