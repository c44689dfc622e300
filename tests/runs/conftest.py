"""A run at a URI: in a folder behind file://, and on a real S3 server on loopback."""

import pytest

from bi_ray.runs import remote_lock
from bi_ray.runs.place import RunPlace


@pytest.fixture(params=["file", "s3"])
def uri(request, tmp_path):
    if request.param == "file":
        return f"file://{tmp_path}/home/run"
    return f"s3://bucket/{tmp_path.name}/run{request.getfixturevalue('s3')}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(remote_lock, "_SETTLE_S", 0.01)


@pytest.fixture
def place(uri, tmp_path):
    """The place as one machine sees it; ``elsewhere`` is the same on another machine."""
    return RunPlace.of(uri, tmp_path / "here")


@pytest.fixture
def elsewhere(uri, tmp_path):
    return RunPlace.of(uri, tmp_path / "there")
