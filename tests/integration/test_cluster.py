"""Joining a cluster of two nodes; finding and replacing the driver of a run there."""

from __future__ import annotations

import json
import socket

import pytest
import ray
from ray.cluster_utils import Cluster

from actors import cluster as module
from actors.cluster import (
    NAMESPACE,
    ClusterError,
    check_shared,
    connect,
    driver_name,
    free_driver_name,
    scale,
)
from bi_ray.config.run import RayConfig
from bi_ray.files.errors import RunError
from bi_ray.runs.directory import RunDirectory


def stand_in() -> type:
    """A driver class made in this function, so that Ray pickles it: workers do not import tests."""

    class Driver:
        def scale(self, workers: int) -> dict:
            if workers > 3:
                raise RunError("too many")
            return {"workers": [{"worker": n, "state": "healthy"} for n in range(workers)]}

    return Driver


@pytest.fixture(scope="module")
def two_nodes():
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def test_a_node_that_does_not_see_the_run_directory_is_named(two_nodes, tmp_path):
    connect(RayConfig(address=two_nodes))
    check_shared(tmp_path, 60)
    with pytest.raises(
        ClusterError, match=f"node {socket.gethostname()} does not see {tmp_path}/absent"
    ):
        check_shared(tmp_path / "absent", 60)


def test_a_driver_that_a_killed_command_left_is_replaced_and_scaled(two_nodes, tmp_path):
    directory = RunDirectory(tmp_path)
    if not ray.is_initialized():
        connect(RayConfig(address=two_nodes))
    left = (
        ray.remote(stand_in())
        .options(num_cpus=0, name=driver_name(directory.run_id), namespace=NAMESPACE)
        .remote()
    )
    ray.get(left.scale.remote(1))
    name = free_driver_name(directory.run_id, 60)
    ray.remote(stand_in()).options(
        num_cpus=0, name=name, namespace=NAMESPACE, lifetime="detached"
    ).remote()
    ray.shutdown()
    assert len(scale(directory, 2, two_nodes)["workers"]) == 2
    with pytest.raises(RunError, match="too many"):
        scale(directory, 4, two_nodes)
    with pytest.raises(ClusterError, match="no rollout workers of"):
        scale(RunDirectory(tmp_path / "other"), 2, two_nodes)
    with pytest.raises(ClusterError, match="no cluster is known for"):
        scale(RunDirectory(tmp_path / "other"), 2)


@pytest.mark.parametrize(
    ("configured", "environment", "job", "joined"),
    [
        (None, None, False, "local"),
        (None, "local", False, "local"),
        ("a:1", None, False, "a:1"),
        (None, "b:2", False, "b:2"),
        ("a:1", "b:2", False, "a:1"),
        ("a:1", "b:2", True, "b:2"),  # a job works on the cluster that runs it
    ],
)
def test_which_cluster_is_joined(configured, environment, job, joined, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_join", lambda address, *_: asked.append(address))
    monkeypatch.setattr(module, "start_local_ray", lambda *_, **__: asked.append("local"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    if job:
        monkeypatch.setenv(
            "RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "mine"}})
        )
    connect(RayConfig(address=configured))
    assert asked == [joined]
