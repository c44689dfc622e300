"""Runs as Ray jobs: submit one, follow its log, ask after it, stop it. Speaks HTTP to the head
node's job server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import bi_ray
from actors.cluster import TOKEN_ADVICE
from actors.local_ray import bypass_proxies, is_loopback
from bi_ray.runs.layout import CLUSTER_FILE
from bi_ray.runs.process import CODE_VERSION_VARIABLE, code_version

DEFAULT_PORT = 8265
DEFAULT_ADDRESS = f"http://127.0.0.1:{DEFAULT_PORT}"
# Ray itself leaves out .git, .venv and what .gitignore names; these stand for projects without that
# file.
EXCLUDES = [
    CLUSTER_FILE,
    "/runs/",
    "/.venv-*/",
    "/.git",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    "*.tmp",
]
STOP_WAIT_S = 30  # between SIGTERM and SIGKILL; Ray's own 3 s are short for closing engines
_END_WAIT_S = 30  # for the status of a job to follow the end of its log
_POLL_S = 0.5


for part in ("job.sdk", "dashboard_sdk"):  # a line per upload and per closed connection
    logging.getLogger(f"ray.dashboard.modules.{part}").setLevel(logging.WARNING)


class JobError(RuntimeError):
    """A job, or the server for jobs, that is not as hoped; the message says what to change."""


def job_server(address: str | None) -> str:
    """The address of the job server: ``address``, else what the environment names.

    Raises:
        JobError: it is not the address of a web server.
    """
    for source, chosen in (
        ("--address", address),
        ("RAY_API_SERVER_ADDRESS", os.environ.get("RAY_API_SERVER_ADDRESS")),
    ):
        if chosen:
            return _web_address(source, chosen)
    cluster = os.environ.get("RAY_ADDRESS")
    if not cluster or cluster in ("auto", "local"):
        return DEFAULT_ADDRESS
    if cluster.startswith(("http://", "https://")):
        return _web_address("RAY_ADDRESS", cluster)
    # Ray's own address, such as HOST:6379, as a run wants it: the job server is on the same
    # machine.
    host = urlsplit(cluster if "://" in cluster else f"ray://{cluster}").hostname
    return f"http://{f'[{host}]' if ':' in (host or '') else host}:{DEFAULT_PORT}"


def _web_address(source: str, address: str) -> str:
    try:
        parts = urlsplit(address)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_web = False
    if not is_web:
        raise JobError(
            f"{source} is {address}: give the address of the job server, http://HOST:{DEFAULT_PORT}"
        )
    return address


class Jobs:
    """The jobs of a cluster.

    Args:
        address: of the head node's job server, ``http://HOST:8265``; None: that of
            ``RAY_API_SERVER_ADDRESS``, or the one on the machine of ``RAY_ADDRESS``, else
            ``DEFAULT_ADDRESS``.

    Raises:
        JobError: from every method: nobody answers there, not without (another) token, or there is
            no such job.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = job_server(address)
        host = urlsplit(self.address).hostname or ""
        if is_loopback(host):  # a proxy would look for the server on its own machine
            bypass_proxies([host])
        # Ray puts RAY_ADDRESS above its own argument
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        with self._explained():
            self._client = JobSubmissionClient(self.address)

    def submit(self, command: Sequence[str], working_dir: Path, name: str | None = None) -> str:
        """Start ``command`` on the cluster, in a copy of ``working_dir``; returns the id of the
        job.
        """
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
        # what the job runs is this code
        if (working_dir / "bi_ray").resolve() == Path(bi_ray.__file__).parent:
            variables[CODE_VERSION_VARIABLE] = code_version()
        environment = {"working_dir": str(working_dir), "excludes": EXCLUDES, "env_vars": variables}
        with self._explained():
            return self._client.submit_job(
                entrypoint=shlex.join(command), runtime_env=environment, submission_id=name
            )

    def follow(self, job: str, write: Callable[[str], object]) -> JobStatus:
        """Hand on the log of a job, from its beginning, until the job ends; returns how it ended."""

        async def copy() -> None:
            async for text in self._client.tail_job_logs(job):
                write(text)

        with self._explained(job):
            self._client.get_job_status(job)  # no such job: said now
            asyncio.run(copy())
        deadline = time.monotonic() + _END_WAIT_S
        while not (status := self.status(job)).is_terminal():
            if time.monotonic() > deadline:
                raise JobError(
                    f"the log of {job} broke off, but it is {status}: `bi-ray job logs {job}` goes on"
                )
            time.sleep(_POLL_S)
        return status

    def status(self, job: str) -> JobStatus:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        with self._explained(job):
            return self._client.get_job_status(job)

    def details(self, job: str) -> Any:
        """What the server knows of a job."""
        with self._explained(job):
            return self._client.get_job_info(job)

    def stop(self, job: str, wait_s: float = STOP_WAIT_S + 30) -> JobStatus:
        """Stop a job and wait until it has ended; returns how it ended."""
        with self._explained(job):
            self._client.stop_job(job)
        deadline = time.monotonic() + wait_s
        while not (status := self.status(job)).is_terminal():
            if time.monotonic() > deadline:
                raise JobError(f"{job} is still {status} {wait_s:g} s after it was told to stop")
            time.sleep(_POLL_S)
        return status

    def all(self) -> list[Any]:
        """What the server knows of every submitted job, the oldest first."""
        with self._explained():
            return sorted(
                (job for job in self._client.list_jobs() if job.submission_id),
                key=lambda job: job.start_time or 0,
            )

    def _proxy_advice(self) -> str:
        parts = urlsplit(self.address)
        proxy = getproxies().get(parts.scheme)
        if proxy is None or proxy_bypass(parts.hostname or ""):
            return ""
        return (
            f". Requests to it go through the proxy {urlsplit(proxy).hostname}; if they should not, add "
            f"{parts.hostname} to NO_PROXY"
        )

    @contextmanager
    def _explained(self, job: str | None = None) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise JobError(
                f"Ray at {self.address} wants a token, or another one: {TOKEN_ADVICE}"
            ) from error
        except (ConnectionError, requests.RequestException) as error:
            raise JobError(
                f"no Ray job server answers at {self.address}: start Ray (`ray start --head`), or give the "
                f"--address of its dashboard, http://HOST:{DEFAULT_PORT}{self._proxy_advice()}"
            ) from error
        except (RuntimeError, ValueError) as error:
            if job is not None and "404" in str(error):
                raise JobError(
                    f"no job {job} at {self.address}; `bi-ray job list` names all"
                ) from error
            if "already exists" in str(error):
                raise JobError(
                    f"there is a job of that name at {self.address}; choose another --job-id"
                ) from error
            raise JobError(f"Ray at {self.address}: {error}") from error
