"""Runs as Ray jobs: submits, follows, checks on and stops them at the head node's job server."""

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
from actors.environment import environment
from actors.local_ray import bypass_proxies, is_loopback
from bi_ray.runs.layout import CLUSTER_FILE
from bi_ray.runs.process import CODE_VERSION_VARIABLE, code_version

DEFAULT_PORT = 8265
_SERVER_VARIABLE = "RAY_API_SERVER_ADDRESS"
_WEB = ("http://", "https://")
DEFAULT_ADDRESS = f"http://127.0.0.1:{DEFAULT_PORT}"
# Ray itself leaves out .git, .venv and what .gitignore names; some projects have no such file.
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
_END_WAIT_S = 30  # between the end of a job's log and its final status
_POLL_S = 0.5


# they log every upload and every closed connection
for part in ("job.sdk", "dashboard_sdk"):
    logging.getLogger(f"ray.dashboard.modules.{part}").setLevel(logging.WARNING)


class JobError(RuntimeError):
    """A job or a job server that cannot do what is asked; the message says what to change."""


def job_server(address: str | None) -> str:
    """The address of the job server: ``address``, else what the environment names.

    Raises:
        JobError: it is not the address of a web server.
    """
    if address:
        return _web_address("--address", address)
    server = os.environ.get(_SERVER_VARIABLE)
    if server:
        return _web_address(_SERVER_VARIABLE, server)
    cluster = os.environ.get("RAY_ADDRESS", "local")
    if cluster in ("", "auto", "local"):
        return DEFAULT_ADDRESS
    if cluster.startswith(_WEB):
        return _web_address("RAY_ADDRESS", cluster)
    # Ray's own address, such as HOST:6379, which a run uses; the job server is on the same machine
    url = cluster if "://" in cluster else f"ray://{cluster}"
    host = urlsplit(url).hostname or ""
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{DEFAULT_PORT}"


def _web_address(source: str, address: str) -> str:
    """``address``, of a web server; ``source`` is where it comes from.

    Raises:
        JobError: it is not.
    """
    advice = f"give the address of the job server, http://HOST:{DEFAULT_PORT}"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise JobError(f"{source} is {address}: {advice}") from error
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise JobError(f"{source} is {address}: {advice}")
    return address


class Jobs:
    """The jobs of a cluster.

    Args:
        address: of the head node's job server, ``http://HOST:8265``; None: that of
            ``RAY_API_SERVER_ADDRESS``, or the one on the machine of ``RAY_ADDRESS``, else
            ``DEFAULT_ADDRESS``.

    Raises:
        JobError: from every method: nobody answers there, the token is missing or wrong, or there
            is no such job.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = job_server(address)
        host = urlsplit(self.address).hostname or ""
        if is_loopback(host):  # a proxy would look for the server on the proxy's machine
            bypass_proxies([host])
        # its argument does not override RAY_ADDRESS, this variable does
        with environment({_SERVER_VARIABLE: self.address}), self._explained():
            self._client = JobSubmissionClient(self.address)

    def submit(self, command: Sequence[str], working_dir: Path, name: str | None = None) -> str:
        """Start a command on the cluster, in a copy of ``working_dir``; returns the job's id."""
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
        # what the job runs is this code
        if (working_dir / "bi_ray").resolve() == Path(bi_ray.__file__).parent:
            variables[CODE_VERSION_VARIABLE] = code_version()
        files = {"working_dir": str(working_dir), "excludes": EXCLUDES, "env_vars": variables}
        with self._explained():
            return self._client.submit_job(
                entrypoint=shlex.join(command), runtime_env=files, submission_id=name
            )

    def follow(self, job: str, write: Callable[[str], object]) -> JobStatus:
        """Write the log of a job from its beginning until the job ends; returns its last status."""

        async def copy() -> None:
            async for text in self._client.tail_job_logs(job):
                write(text)

        with self._explained(job):
            self._client.get_job_status(job)  # an unknown job fails here
            asyncio.run(copy())
        status = self._wait_for_end(job, _END_WAIT_S)
        if not status.is_terminal():
            raise JobError(
                f"the log of {job} broke off, but it is {status}: `bi-ray job logs {job}` continues"
            )
        return status

    def _wait_for_end(self, job: str, wait_s: float) -> JobStatus:
        """The status of a job that has ended, or that has not after ``wait_s``."""
        deadline = time.monotonic() + wait_s
        status = self.status(job)
        while not status.is_terminal() and time.monotonic() <= deadline:
            time.sleep(_POLL_S)
            status = self.status(job)
        return status

    def status(self, job: str) -> JobStatus:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        with self._explained(job):
            return self._client.get_job_status(job)

    def details(self, job: str) -> Any:
        """What the server reports about a job."""
        with self._explained(job):
            return self._client.get_job_info(job)

    def stop(self, job: str, wait_s: float = STOP_WAIT_S + 30) -> JobStatus:
        """Stop a job and wait until it has ended; returns its last status."""
        with self._explained(job):
            self._client.stop_job(job)
        status = self._wait_for_end(job, wait_s)
        if not status.is_terminal():
            raise JobError(f"{job} is still {status} {wait_s:g} s after it was told to stop")
        return status

    def all(self) -> list[Any]:
        """What the server reports about every submitted job, the oldest first."""
        with self._explained():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0)

    def _proxy_advice(self) -> str:
        parts = urlsplit(self.address)
        proxy = getproxies().get(parts.scheme)
        if proxy is None or proxy_bypass(parts.hostname or ""):
            return ""
        return (
            f". Requests to it go through the proxy {urlsplit(proxy).hostname}; if they should "
            f"not, add {parts.hostname} to NO_PROXY"
        )

    @contextmanager
    def _explained(self, job: str | None = None) -> Iterator[None]:
        """Turn errors of Ray's client into ``JobError``, with advice."""
        try:
            yield
        except AuthenticationError as error:
            raise JobError(
                f"Ray at {self.address} wants a token, or another one: {TOKEN_ADVICE}"
            ) from error
        except (ConnectionError, requests.RequestException) as error:
            raise JobError(
                f"no Ray job server answers at {self.address}: start Ray (`ray start --head`), or "
                f"give the --address of its dashboard, http://HOST:{DEFAULT_PORT}"
                f"{self._proxy_advice()}"
            ) from error
        except (RuntimeError, ValueError) as error:
            if job is not None and "404" in str(error):
                raise JobError(
                    f"no job {job} at {self.address}; `bi-ray job list` prints all"
                ) from error
            if "already exists" in str(error):
                raise JobError(
                    f"a job of that name already exists at {self.address}; choose another --job-id"
                ) from error
            raise JobError(f"Ray at {self.address}: {error}") from error
