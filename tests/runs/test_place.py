"""The place of a run: its working copy where it is a URI, and what a job refuses."""

import json

import pytest

from bi_ray.files.errors import RunError
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.place import RunPlace


def test_where_the_working_copy_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BI_RAY_LOCAL", raising=False)
    one, other = RunPlace.of("s3://a/run"), RunPlace.of("s3://b/run/")
    assert one.path.parent == tmp_path / "cache" / "bi_ray"
    assert one.path != other.path
    assert RunPlace.of("s3://b/run").path == other.path
    monkeypatch.setenv("BI_RAY_LOCAL", str(tmp_path / "shared"))
    assert RunPlace.of("s3://a/run").path == tmp_path / "shared" / one.path.name


@pytest.mark.parametrize("make", [RunDirectory, RunPlace.of])
def test_a_job_refuses_a_relative_directory(make, monkeypatch, tmp_path):
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "mine"}})
    )
    with pytest.raises(RunError, match="runs/x, is relative: a job runs in a copy"):
        make("runs/x")
    with RunDirectory(tmp_path):
        assert "job mine on" in (tmp_path / ".lock").read_text()
