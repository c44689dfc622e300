import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from bi_ray.runs.process import CODE_VERSION_VARIABLE, code_version

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_code_version_names_the_commit_of_a_checkout(monkeypatch):
    monkeypatch.delenv(CODE_VERSION_VARIABLE, raising=False)
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    assert code_version() == f"{metadata.version('bi-ray')}+{commit}"


def test_in_a_job_it_is_that_of_the_submitted_code(monkeypatch):
    monkeypatch.setenv(CODE_VERSION_VARIABLE, "1.2+abc")
    assert code_version() == "1.2+abc"
