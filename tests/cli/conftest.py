"""Data that the tests of several commands share."""

import json

import pytest

from bi_ray.rows.fields import rows_of
from bi_ray.rows.rejects import Rejects
from tests.command_line import QUICKSTART, call


@pytest.fixture(scope="package")
def problem_set(tmp_path_factory):
    """A directory with 60 problems of the quickstart."""
    out = tmp_path_factory.mktemp("data") / "set"
    output = call("data", QUICKSTART, "--out", out, "--problems", 60)
    assert "60 problems; the best constant answer" in output
    return out


@pytest.fixture(scope="package")
def injected(problem_set):
    """A directory with demonstrations of these problems, as JSON lines."""
    out = problem_set.with_name("injected")
    output = call("inject", problem_set, "--out", out, "--recipe", "bridge", "--format", "jsonl")
    assert "60 demonstrations with" in output
    return out


@pytest.fixture
def user_file(tmp_path, problem_set):
    """A user's file: five templated questions without graphs, and two bad rows among them.

    Line 2 is not JSON, line 4 has a wrong answer.
    """
    lines = []
    for _, row in list(rows_of(problem_set, Rejects()))[:5]:
        lines.append(json.dumps({"question": row["question"], "answer": row["answer"]}))
    lines[2] = json.dumps(json.loads(lines[2]) | {"answer": "123456"})
    lines.insert(1, "{not JSON")
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file
