"""The command of a job and what `submit` refuses; real jobs are in integration/test_jobs.py."""

import os
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus

from actors import job_client as jobs_module
from actors.job_client import EXCLUDES, JobError, Jobs
from bi_ray.cli.jobs import JobRun, job_command
from bi_ray.config.base import ConfigError
from bi_ray.files.errors import RunError
from tests.command_line import QUICKSTART, ROOT


def test_the_command_of_a_job():
    job = JobRun(QUICKSTART, "/shared/run", working_dir=ROOT)
    command = ["bi-ray", "run", "configs/quickstart.yaml", "--run", "/shared/run"]
    assert job_command(job) == command
    job = JobRun(QUICKSTART, "s3://bucket/run", "rl", Path("/shared/work"), ROOT)
    assert job_command(job)[5:] == ["--from", "rl", "--local", "/shared/work"]


def test_what_cannot_work_in_a_job_is_refused(tmp_path):
    with pytest.raises(RunError, match="--run, runs/x, is relative: a job runs in a copy"):
        job_command(JobRun(QUICKSTART, "runs/x", working_dir=ROOT))
    with pytest.raises(RunError, match="--local, work, is relative"):
        job_command(JobRun(QUICKSTART, "s3://bucket/run", local=Path("work"), working_dir=ROOT))
    with pytest.raises(ConfigError, match="is not inside"):
        job_command(JobRun(QUICKSTART, "/shared/run", working_dir=tmp_path))
    moved = tmp_path / "quickstart.yaml"
    moved.write_text(QUICKSTART.read_text())
    with pytest.raises(ConfigError, match="no models/tiny-base inside"):
        job_command(JobRun(moved, "/shared/run", working_dir=tmp_path))


UPLOADED = ("bi_ray/a.py", "models/m/model.safetensors")
NOT_UPLOADED = ("runs/r/big", ".venv-x/big", ".mypy_cache/big", ".git")


def test_what_is_uploaded_is_the_code_and_the_model(tmp_path):
    project = tmp_path / "project"
    for name in (*UPLOADED, *NOT_UPLOADED):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    package = tmp_path / "package.zip"
    create_package(str(project), package, include_gitignore=True, excludes=list(EXCLUDES))
    names = zipfile.ZipFile(package).namelist()
    assert sorted(name for name in names if not name.endswith("/")) == sorted(UPLOADED)


class Client:
    """A job server whose log ends before its job does."""

    def __init__(self, *statuses):
        self.statuses = list(statuses)

    def get_job_status(self, job):
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def stop_job(self, job):
        return True

    async def tail_job_logs(self, job):
        yield "one\n"
        yield "two\n"


@pytest.fixture
def make_jobs(monkeypatch):
    def make(*statuses):
        monkeypatch.setattr(jobs_module, "JobSubmissionClient", lambda address: Client(*statuses))
        monkeypatch.setattr(jobs_module, "_POLL_S", 0.01)
        monkeypatch.setattr(jobs_module, "_END_WAIT_S", 0.1)
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://nowhere:1")
        return Jobs()

    return make


def test_the_log_is_followed_until_the_job_has_ended(make_jobs):
    written = []
    jobs = make_jobs(JobStatus.PENDING, JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.FAILED)
    assert jobs.follow("mine", written.append) == "FAILED"
    assert written == ["one\n", "two\n"]


def test_a_log_that_breaks_off_is_not_the_end_of_a_job(make_jobs):
    with pytest.raises(JobError, match="the log of mine broke off, but it is RUNNING"):
        make_jobs(JobStatus.RUNNING).follow("mine", print)


def test_a_job_that_does_not_stop_is_reported(make_jobs):
    with pytest.raises(JobError, match=r"mine is still RUNNING 0\.1 s after"):
        make_jobs(JobStatus.RUNNING).stop("mine", wait_s=0.1)


def test_a_given_address_overrides_the_environment(make_jobs, monkeypatch):
    """In Ray itself the environment comes first."""
    make_jobs(JobStatus.RUNNING)
    seen = []

    def client(address):
        seen.append((address, os.environ["RAY_API_SERVER_ADDRESS"]))

    monkeypatch.setattr(jobs_module, "JobSubmissionClient", client)
    monkeypatch.setenv("RAY_ADDRESS", "http://other:2")
    assert Jobs("http://given:3").address == "http://given:3"
    assert seen == [("http://given:3", "http://given:3")]
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://nowhere:1"  # as it was before
    with pytest.raises(JobError, match="give the address of the job server"):
        Jobs("given:6379")
