"""What a local Ray and the commands that join a cluster make of the environment; the real ones are
in integration.
"""

import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from actors import cluster as cluster_module
from actors.cluster import ClusterError, check_address, scale
from actors.job_client import JobError, Jobs, job_server
from actors.local_ray import bypass_proxies, is_loopback, session_folder
from bi_ray.files.private import PrivacyError, write_private
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.layout import CLUSTER_FILE
from tests.listeners import needs_root

PROXY_VARIABLES = ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_TMPDIR", "TMPDIR", *PROXY_VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "", "127.0.0.1.evil"]
)
def test_no_loopback(host):
    assert not is_loopback(host)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_the_sockets_of_a_session_fit_however_long_the_folder_for_temporary_files_is(
    variable, monkeypatch, tmp_path
):
    for length in (1, 30, 100, 200):
        folder = tmp_path / ("x" * length)
        folder.mkdir()
        monkeypatch.setenv(variable, str(folder))
        path = (
            session_folder() / "session_2026-11-28_16-48-20_360143_4194304/sockets/plasma_store.1"
        )
        assert path.parents[2].stat().st_mode & 0o777 == 0o700
        path.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))  # the system's own limit
        path.unlink()
        path.parent.rmdir()
        path.parents[1].rmdir()


def test_a_short_folder_is_used_as_it_is(monkeypatch):
    assert session_folder() == Path(f"/tmp/bi_ray_{os.geteuid()}")
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert session_folder() == Path(f"/var/tmp/bi_ray_{os.geteuid()}")
    session_folder().rmdir()


@needs_root
def test_a_session_folder_that_another_user_made_is_refused(monkeypatch):
    folder = Path("/tmp") / f"t{os.getpid()}"
    (folder / "bi_ray_0").mkdir(parents=True)
    os.chown(folder / "bi_ray_0", 12345, 12345)
    monkeypatch.setenv("TMPDIR", str(folder))
    try:
        with pytest.raises(PrivacyError, match="belongs to user 12345"):
            session_folder()
    finally:
        (folder / "bi_ray_0").rmdir()
        folder.rmdir()


@pytest.mark.parametrize(
    ("address", "what"),
    [
        (
            "http://10.0.0.1:8265",
            "RAY_ADDRESS is http://10.0.0.1:8265, the address of a job server",
        ),
        ("https://head", "the address of a job server"),
        ("ray://10.0.0.1:10001", "the address of a Ray client server"),
        ("10.0.0.1", "not HOST:PORT"),
        (":6379", "not HOST:PORT"),
        ("10.0.0.1:", "not HOST:PORT"),
    ],
)
def test_an_address_of_another_kind_is_one_clear_line(address, what):
    with pytest.raises(ClusterError, match=what) as caught:
        check_address(address, "RAY_ADDRESS")
    assert str(caught.value).endswith("a run needs Ray's own address, such as HOST:6379")


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "[::1]:6379", "head.example:6379", "auto"])
def test_an_address_that_can_be_joined(address):
    check_address(address, "RAY_ADDRESS")


@pytest.mark.parametrize(
    ("environment", "server"),
    [
        ({}, "http://127.0.0.1:8265"),
        ({"RAY_ADDRESS": "auto"}, "http://127.0.0.1:8265"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "http://10.0.0.1:8265"),
        ({"RAY_ADDRESS": "[fd00::2]:6379"}, "http://[fd00::2]:8265"),
        ({"RAY_ADDRESS": "ray://10.0.0.1:10001"}, "http://10.0.0.1:8265"),
        ({"RAY_ADDRESS": "https://head/ray"}, "https://head/ray"),
        (
            {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_API_SERVER_ADDRESS": "http://other:1"},
            "http://other:1",
        ),
    ],
)
def test_where_jobs_go(environment, server, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert job_server(None) == server
    assert job_server("http://given:2") == "http://given:2"


@pytest.mark.parametrize(
    "address", ["10.0.0.1:6379", "head", "ray://head:10001", "http://", "http://head:port"]
)
@pytest.mark.parametrize("source", ["--address", "RAY_API_SERVER_ADDRESS"])
def test_a_job_server_of_another_kind_is_one_clear_line(address, source, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    with pytest.raises(
        JobError, match=f"{source} is .*: give the address of the job server, http://HOST:8265"
    ):
        job_server(address if source == "--address" else None)


class NoJobs(BaseHTTPRequestHandler):
    """A job server without any job."""

    def do_GET(self):
        version = (
            b'{"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": "s"}'
        )
        body = b"[]" if self.path.startswith("/api/jobs") else version
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def job_server_here():
    server = HTTPServer(("127.0.0.1", 0), NoJobs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_jobs_on_this_machine_are_asked_for_without_the_proxy(job_server_here, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(requests.ConnectionError):
        requests.get(job_server_here, timeout=5)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")  # which Ray prefers to its argument
    assert Jobs(job_server_here).all() == []
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


def test_a_job_server_behind_a_proxy_that_does_not_answer_names_the_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    with pytest.raises(
        JobError, match=r"go through the proxy 127\.0\.0\.1; .* add 192\.0\.2\.1 to NO_PROXY"
    ) as caught:
        Jobs("http://192.0.2.1:8265")
    assert "secret" not in str(caught.value)


def test_hosts_that_bypass_a_proxy_are_added_to_those_that_do(monkeypatch):
    bypass_proxies(["127.0.0.1"])
    assert "no_proxy" not in os.environ  # there is no proxy
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "intern.example")
    monkeypatch.setenv("no_proxy", "")
    bypass_proxies(["127.0.0.1", "localhost"])
    bypass_proxies(["127.0.0.1"])
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intern.example,127.0.0.1,localhost"


@pytest.fixture
def joined(monkeypatch):
    """The addresses that ``scale`` joins."""
    asked = []

    def join(address, *_):
        asked.append(address)
        raise ClusterError("far enough")

    monkeypatch.setattr(cluster_module, "_join", join)
    return asked


def written(run):
    run.mkdir(mode=0o700)
    write_private(
        run / CLUSTER_FILE, '{"address": "10.6.6.6:6379", "auth_mode": "token", "token": null}'
    )
    return RunDirectory(run)


def test_scale_joins_what_its_own_user_wrote(tmp_path, joined):
    with pytest.raises(ClusterError, match="far enough"):
        scale(written(tmp_path / "run"), 2)
    assert joined == ["10.6.6.6:6379"]


@pytest.mark.parametrize("place", [".", CLUSTER_FILE])
@pytest.mark.parametrize("bits", [0o020, 0o002])
def test_scale_joins_no_address_that_others_can_write(tmp_path, joined, place, bits):
    directory = written(tmp_path / "run")
    path = tmp_path / "run" / place
    path.chmod(path.stat().st_mode | bits)
    with pytest.raises(
        ClusterError, match=r"not trusted: others can write to .*give the --address"
    ):
        scale(directory, 2)
    with pytest.raises(ClusterError, match="far enough"):
        scale(directory, 2, "10.1.1.1:6379")
    assert joined == ["10.1.1.1:6379"]


@needs_root
@pytest.mark.parametrize("place", [".", CLUSTER_FILE])
def test_scale_joins_no_address_of_another_user(tmp_path, joined, place):
    directory = written(tmp_path / "run")
    os.chown(tmp_path / "run" / place, 12345, 12345)
    with pytest.raises(
        ClusterError, match=r"not trusted: .* belongs to user 12345.*give the --address"
    ):
        scale(directory, 2)
    assert joined == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"address": "h:1", "host": "x"}', "null"])
def test_a_damaged_address_is_one_clear_line(tmp_path, joined, text):
    directory = written(tmp_path / "run")
    write_private(tmp_path / "run" / CLUSTER_FILE, text)
    with pytest.raises(ClusterError, match=r"\.cluster\.json is damaged"):
        scale(directory, 2)
    assert joined == []
