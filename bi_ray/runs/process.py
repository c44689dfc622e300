"""What this process is to a run: the Ray job that it may be, and the version of its code."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from importlib import metadata
from pathlib import Path

from bi_ray.files.errors import RunError

# Set for a job, whose copy of the code comes without .git.
CODE_VERSION_VARIABLE = "BI_RAY_CODE_VERSION"
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job supervisor
_CHECKOUT = Path(__file__).parents[2]  # where the code was cloned, if it was
_GIT_TIMEOUT_S = 10


def job_id() -> str | None:
    """The id of the Ray job that this command is, None outside of one."""
    job_config = os.environ.get(_JOB_VARIABLE)
    if not job_config:
        return None
    job: str = json.loads(job_config).get("metadata", {}).get("job_submission_id", "unknown")
    return job


def this_process() -> str:
    """What a lock says of its holder, such as ``4711`` or ``4711 (job raysubmit_1 on head)``."""
    job = job_id()
    if job is None:
        return str(os.getpid())
    return f"{os.getpid()} (job {job} on {socket.gethostname()})"


def absolute(path: str | Path) -> Path:
    """The absolute path of a run directory.

    Raises:
        RunError: it is relative, and this is a Ray job.
    """
    if job_id() is not None:
        refuse_relative("the run directory", path)
    return Path(path).absolute()


def refuse_relative(what: str, path: str | Path) -> None:
    """Refuse a relative path in a Ray job, whose working directory is thrown away.

    Raises:
        RunError: the path is relative.
    """
    if not Path(path).is_absolute():
        raise RunError(
            f"{what}, {path}, is relative: a job runs in a copy of the working directory, and "
            "results in there would be lost; give an absolute path that every node sees, or a URI "
            "such as s3://bucket/run"
        )


def code_version() -> str:
    """The installed version of this package, with the commit where the code is a git checkout.

    In a Ray job it is that of the checkout from which the job was submitted.
    """
    submitted = os.environ.get(CODE_VERSION_VARIABLE)
    if submitted:
        return submitted
    version = metadata.version("bi-ray")
    if not (_CHECKOUT / ".git").exists() or shutil.which("git") is None:
        return version
    describe = ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S)
    if commit.returncode != 0:
        return version
    return f"{version}+{commit.stdout.strip()}"
