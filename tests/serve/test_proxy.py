"""The proxy's limits, by a real uvicorn and raw sockets."""

import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from uvicorn.config import HTTP_PROTOCOLS

from serve import proxy

TIMEOUT_S = 0.3
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


async def echo(scope, receive, send):
    """Answers with the headers that it got, without a look at the body."""
    headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
    body = json.dumps(headers).encode()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"%d" % len(body))],
        }
    )
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port():
    """Of a server as Ray Serve's proxy starts one after it has called ``middlewares``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "HEADERS_TIMEOUT_S", TIMEOUT_S)
        patch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
        app = echo
        for middleware in proxy.middlewares():
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)
        config = uvicorn.Config(
            app, port=0, lifespan="off", log_level="critical", timeout_keep_alive=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        thread.join()


@contextmanager
def connected(port):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        yield connection


def closed_after(connection):
    """Seconds until the server closes the connection."""
    began = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began


def fed_until_closed(connection, piece):
    """Seconds that the server takes one piece after the other."""
    began = time.monotonic()
    try:
        while time.monotonic() - began < 5:
            connection.sendall(piece)
            time.sleep(0.02)
    except ConnectionError:
        pass
    return time.monotonic() - began


def ask(port, *pieces):
    """All that comes back, nothing if the connection is reset at once."""
    answer = b""
    with connected(port) as connection:
        try:
            connection.sendall(b"".join(pieces))
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionError:
            pass
    return answer


def test_a_connection_that_sends_nothing_is_closed(port):
    with connected(port) as connection:
        assert TIMEOUT_S / 2 < closed_after(connection) < 3


@pytest.mark.parametrize(
    "before", [b"", REQUEST + b"\r\n"], ids=["the first request", "a second one"]
)
def test_headers_that_trickle_are_closed(port, before):
    with connected(port) as connection:
        connection.sendall(before)
        if before:
            connection.recv(65536)
        connection.sendall(REQUEST)
        assert TIMEOUT_S / 2 < fed_until_closed(connection, b"x: a\r\n") < 3


def test_the_rest_of_a_body_that_nobody_reads_has_a_limit(port):
    with connected(port) as connection:
        connection.sendall(REQUEST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n")
        connection.recv(65536)
        assert fed_until_closed(connection, b"5\r\nabcde\r\n") < 3


def test_requests_that_come_in_time_share_a_connection(port):
    with connected(port) as connection:
        for _ in range(4):
            connection.sendall(REQUEST + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(TIMEOUT_S / 2)


def test_headers_without_end_are_refused(port):
    for headers in (b"x: " + b"a" * 2**20, b"x: a\r\n" * 100_000):
        assert not ask(port, REQUEST, headers, b"Connection: close\r\n\r\n").startswith(
            b"HTTP/1.1 2"
        )


def test_the_list_of_routes_is_hidden(port):
    assert (
        ask(port, b"GET /-/routes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")[9:12]
        == b"404"
    )
    assert (
        ask(port, b"GET /%2d/routes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")[9:12]
        == b"404"
    )


def test_headers_that_steer_ray_serve_do_not_reach_it(port):
    headers = b"X-Request-Timeout-Seconds: 0\r\nserve_multiplexed_model_id: \xff\r\n"
    headers += b"X-Request-ID: \xff\r\nx-mine: 1\r\n"
    answer = ask(port, REQUEST, headers, b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"host", "x-mine", "connection"}
