"""Weights of another node that do not arrive cost the worker, as weights that do not load do."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from actors.weights import shared_memory
from actors.weights.base import WeightSyncError
from actors.weights.shared_memory import FileAnnouncement, SharedMemorySync
from bi_ray.policy.version import PolicyVersion


@pytest.mark.parametrize(
    "error",
    [
        OSError("no space left on device"),
        ActorDiedError(),
        RayTaskError("read", "the traceback", FileNotFoundError("no such file")),
    ],
)
def test_a_file_that_cannot_be_fetched_is_a_failed_sync(monkeypatch, tmp_path, error):
    def read(path, offset):
        raise error

    owner = SimpleNamespace(read=SimpleNamespace(remote=read))
    context = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(shared_memory, "owner_on", lambda node, directory: owner)
    monkeypatch.setattr(shared_memory.ray, "get_runtime_context", lambda: context)
    announcement = FileAnnouncement(PolicyVersion(1, 2), "there", "/weights/1.2")
    with pytest.raises(WeightSyncError, match=r"1\.2 was not fetched from node there") as caught:
        asyncio.run(SharedMemorySync(tmp_path / "copies").load(None, announcement, 10))
    assert caught.value.__cause__ is error
    assert "the traceback" not in str(caught.value)
