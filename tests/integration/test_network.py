"""Who can reach a run: all its sockets, a user without the token, a host in another namespace."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from ray.serve.generated import serve_pb2

from bi_ray.runs.layout import CLUSTER_FILE
from tests.integration.test_pipeline import BI_RAY, DEADLINE_S, config, finish, write
from tests.listeners import Listener, listeners, user_environment
from tests.serving import put_policy, serving, write_run

__all__ = ["config"]  # a fixture
pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]
POLL_S = 0.5
AGENT_PORT = 52365  # of Ray's dashboard agent, which accepts jobs
TOKEN = "5" * 64

LOCAL_RAY = """
import sys, time
from pathlib import Path
import ray
from actors.cluster import connect, write_address
from bi_ray.config import RayConfig
from bi_ray.runs.layout import CLUSTER_FILE
connect(RayConfig(local_cpus=2))
write_address(Path(sys.argv[1]))
print("up", flush=True)
time.sleep(600)
"""
# A driver that runs code on the cluster if it is admitted.
INTRUDER = """
import sys
import ray
from ray._private import ray_constants
ray_constants.ENABLE_RAY_CLUSTER = False
ray.init(address=sys.argv[1], log_to_driver=False)
print("intruder got", ray.get(ray.remote(lambda: "in").remote()))
"""


def beyond_loopback(found: set[Listener]) -> list[Listener]:
    return sorted(one for one in found if not one.is_on_loopback)


@pytest.mark.slow
def test_every_socket_of_a_run_is_on_loopback(config, tmp_path):
    """Also without a home, with a long temporary path, a proxy and no authentication."""
    small = config | {
        "learner": {"workers": 2, "cpus_per_worker": 0.5},
        "readiness": {"queries": 0},
        "evaluation": config["evaluation"] | {"samples_per_prompt": 0},
    }
    temporary = tmp_path / ("long" * 30)
    temporary.mkdir()
    environment = user_environment(
        RAY_AUTH_MODE="disabled", TMPDIR=str(temporary), http_proxy="http://127.0.0.1:9"
    )
    environment.pop("HOME", None)
    command = [BI_RAY, "run", write(small, tmp_path / "tiny.yaml"), "--run", tmp_path / "run"]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    found: set[Listener] = set()
    while process.poll() is None:
        found |= listeners(process.pid)
        time.sleep(POLL_S)
    code, output = finish(process)
    assert code == 0, output
    processes = {one.process for one in found}
    for part in ("gcs_server", "raylet", "ray::DashboardAgent", "ray::Driver", "VLLM::EngineCore"):
        assert any(name.startswith(part) for name in processes), (
            f"{part} was not seen among {processes}"
        )
    # A worker of Ray has one listener; process groups add a rendezvous on one rank, gloo on all.
    learners = [one for one in found if "RayTrainWorker" in one.process]
    assert len(learners) > 3, learners
    assert not beyond_loopback(found)
    assert os.stat(tmp_path / "run" / CLUSTER_FILE).st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_served_run_lets_no_other_host_in(tiny_model, tmp_path, monkeypatch):
    """Ray Serve binds a port of each replica to all interfaces; these ports require the token."""
    run = tmp_path / "run"
    write_run(run, tiny_model(True))
    put_policy(run / "sft/bridge", tiny_model(True))
    for name in set(os.environ) - set(user_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with serving(run, "--models", "bridge-sft") as served:
        found = listeners(served.process.pid)
        processes = {one.process for one in found}
        for part in ("gcs_server", "raylet", "ray::ProxyActor", "VLLM::EngineCore"):
            assert any(name.startswith(part) for name in processes), (
                f"{part} was not seen among {processes}"
            )
        open_to_all = beyond_loopback(found)
        assert all(one.process.startswith("ray::ServeReplica") for one in open_to_all), open_to_all
        for one in open_to_all:
            assert answers_of_replica(one.port, None) == {grpc.StatusCode.UNAUTHENTICATED}
            assert answers_of_replica(one.port, "0" * 64) == {grpc.StatusCode.UNAUTHENTICATED}
            assert grpc.StatusCode.UNAUTHENTICATED not in answers_of_replica(one.port, TOKEN)


def answers_of_replica(port: int, token: str | None) -> set[grpc.StatusCode]:
    """The answer of each method of a replica's own server to an empty request."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    codes = set()
    with grpc.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        for method in serve_pb2.DESCRIPTOR.services_by_name["ASGIService"].methods:
            call = channel.unary_stream(f"/{method.containing_service.full_name}/{method.name}")
            answer = call(b"", metadata=metadata, timeout=30)
            with contextlib.suppress(grpc.RpcError):
                list(answer)
            codes.add(answer.code())
    assert codes
    return codes


@dataclass(frozen=True)
class LocalRay:
    """A local Ray as commands start it.

    Attributes:
        address: where its driver found it, on loopback.
        token: required by its calls.
        pid: process id of the command.
    """

    address: str
    token: str
    pid: int

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@contextlib.contextmanager
def local_ray(folder: Path, *prefix: str) -> Iterator[LocalRay]:
    """Start a local Ray in its own process; ``prefix`` is a command that enters a namespace."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", LOCAL_RAY, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=user_environment(PYTHONPATH=str(ROOT)),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        there = json.loads((folder / CLUSTER_FILE).read_text())
        yield LocalRay(there["address"], there["token"], process.pid)
    finally:
        process.terminate()
        process.wait(60)


def intrude(address: str, *prefix: str, seconds: float = DEADLINE_S, **environment: str) -> str:
    """What a driver sees that tries to join for ``seconds``; Ray itself would try for minutes."""
    command = [*prefix, sys.executable, "-c", INTRUDER, address]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=user_environment(**environment),
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        return output


def test_a_user_of_the_machine_without_the_token_is_refused(tmp_path):
    with local_ray(tmp_path) as ray:
        assert "intruder got in" in intrude(
            ray.address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=ray.token
        )
        for environment in (
            {"RAY_AUTH_MODE": "disabled"},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        ):
            output = intrude(ray.address, **environment)
            assert "intruder got in" not in output
            assert "nauthenticated" in output or "AuthenticationError" in output, output
        jobs = f"http://127.0.0.1:{AGENT_PORT}/api/job_agent/jobs/"
        job = {"entrypoint": f"touch {tmp_path}/ran"}
        assert httpx.post(jobs, json=job).status_code == 401
        wrong = {"Authorization": "Bearer " + "0" * 64}
        assert httpx.post(jobs, json=job, headers=wrong).status_code == 403
        assert not (tmp_path / "ran").exists()
        assert not beyond_loopback(listeners(ray.pid))


# a network that exists only between the two namespaces
HOST, OTHER = "10.199.77.1", "10.199.77.2"


@pytest.fixture
def two_hosts() -> Iterator[tuple[list[str], list[str]]]:
    """Two connected network namespaces; gives the commands that run something in each."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    names = [f"bi-ray-{role}-{os.getpid()}" for role in ("host", "other")]
    enter = [["ip", "netns", "exec", name] for name in names]
    try:
        for name in names:
            if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
                pytest.skip("this system allows no network namespaces")
        ends = [f"br{os.getpid()}{side}" for side in "ab"]
        cable = [
            "ip",
            "link",
            "add",
            ends[0],
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            ends[1],
        ]
        subprocess.run([*cable, "netns", names[1]], check=True)
        for inside, end, address in zip(enter, ends, (HOST, OTHER), strict=True):
            subprocess.run([*inside, "ip", "addr", "add", f"{address}/24", "dev", end], check=True)
            subprocess.run([*inside, "ip", "link", "set", end, "up"], check=True)
            subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
            # The default route, by which Ray and vLLM would find the host's own address.
            subprocess.run([*inside, "ip", "route", "add", "default", "dev", end], check=True)
        yield enter[0], enter[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


POST = """
import sys, httpx
try:
    print("answered", httpx.post(sys.argv[1], json={"entrypoint": "true"}, timeout=10).status_code)
except httpx.ConnectError as error:
    print("no answer:", error)
"""


KNOCK = """
import socket, sys
for port in sys.argv[2:]:
    print(port, socket.socket().connect_ex((sys.argv[1], int(port))))
"""
LISTENERS = """
import sys
from tests.listeners import listeners
for one in listeners(int(sys.argv[1])):
    print(one.port)
"""
SERVER = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def server_in(host: list[str]) -> Iterator[int]:
    """The port of a server on the first host that any other host may reach."""
    process = subprocess.Popen(
        [*host, sys.executable, "-c", SERVER, HOST], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_another_host_reaches_nothing(two_hosts, tmp_path):
    host, other = two_hosts
    with local_ray(tmp_path, *host) as ray, server_in(host) as neighbor:
        seen = subprocess.run(
            [*host, sys.executable, "-c", LISTENERS, str(ray.pid)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        open_ports = set(map(int, seen.stdout.split())) | {AGENT_PORT, ray.port}
        knocked = subprocess.run(
            [*other, sys.executable, "-c", KNOCK, HOST, *map(str, {*open_ports, neighbor})],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        results = dict(line.split() for line in knocked.stdout.splitlines())
        assert results.pop(str(neighbor)) == "0", "the second host does not reach the first at all"
        assert len(results) == len(open_ports) >= 10
        assert set(results.values()) == {str(errno.ECONNREFUSED)}, results
        for mode in (
            {"RAY_AUTH_MODE": "disabled"},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray.token},
        ):
            assert "intruder got in" not in intrude(
                f"{HOST}:{ray.port}", *other, seconds=60, **mode
            )
        url = f"http://{HOST}:{AGENT_PORT}/api/job_agent/jobs/"
        posted = subprocess.run(
            [*other, sys.executable, "-c", POST, url],
            capture_output=True,
            text=True,
            env=user_environment(),
        )
        assert posted.stdout.startswith("no answer"), posted.stdout + posted.stderr
