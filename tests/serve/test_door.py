import json

import pytest
from fastapi.testclient import TestClient

from serve import door
from serve.asgi import Head
from serve.door import ServerBusy, is_loopback, key_digest, make_app

HERE, ELSEWHERE = ("127.0.0.1", 5000), ("203.0.113.7", 5000)
REQUEST = {"model": "bridge-rl", "prompt": "x"}


class Servers:
    """Answers with what it was asked, or fails."""

    names = ("bridge-rl", "bridge-sft")

    def __init__(self, fails=None, stream=False, lost="bridge"):
        self.fails = fails
        self.lost = lost
        self.stream = stream

    async def card(self, name):
        if self.fails and name.startswith(self.lost):
            raise self.fails
        return {"id": name, "object": "model"}

    async def answer(self, name, path, body):
        if self.fails:
            raise self.fails
        yield Head(200, {"content-type": "text/event-stream" if self.stream else "application/json", "x-seen": "1"})
        yield json.dumps({"name": name, "path": path, "body": json.loads(body)}).encode()


def client(servers=None, keys=(), address=HERE):
    return TestClient(make_app(servers or Servers(), list(map(key_digest, keys))), client=address)


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_requests_go_to_the_server_of_their_model():
    answer = client().post("/v1/chat/completions", json={"model": "bridge-sft", "messages": []})
    assert answer.json() == {
        "name": "bridge-sft",
        "path": "/v1/chat/completions",
        "body": {"model": "bridge-sft", "messages": [], "skip_special_tokens": False},
    }
    assert answer.headers["x-seen"] == "1"
    told = client().post("/v1/completions", json=REQUEST | {"skip_special_tokens": True}).json()
    assert told["body"]["skip_special_tokens"] is True


def test_a_chat_ends_at_the_strings_that_end_a_response_of_training():
    app = TestClient(make_app(Servers(), [], ["</answer>"]), client=HERE)
    chat = {"model": "bridge-sft", "messages": []}
    body = app.post("/v1/chat/completions", json=chat).json()["body"]
    assert (body["stop"], body["include_stop_str_in_output"]) == (["</answer>"], True)
    own = app.post("/v1/chat/completions", json=chat | {"stop": ["x"]}).json()["body"]
    assert own["stop"] == ["x"]
    assert "include_stop_str_in_output" not in own
    assert "stop" not in app.post("/v1/completions", json=REQUEST).json()["body"]


def test_a_stream_is_passed_on_as_one():
    answer = client(Servers(stream=True)).post("/v1/completions", json=REQUEST | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in answer.headers


def test_models_are_listed_one_by_one_and_together():
    listed = client().get("/v1/models").json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["bridge-rl", "bridge-sft"]
    assert client().get("/v1/models/bridge-sft").json()["id"] == "bridge-sft"
    assert error_of(client().get("/v1/models/other"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/bridge-rl", "/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "Basic right", "right", "Bearer right2"])
def test_without_a_known_key_the_door_is_shut(path, header):
    method = "GET" if "models" in path else "POST"
    headers = {"authorization": header} if header else {}
    answer = client(keys=["right", "other"]).request(method, path, json=REQUEST, headers=headers)
    error = error_of(answer, 401)
    assert error["code"] == "invalid_api_key"
    assert "Authorization: Bearer KEY" in error["message"]
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["right", "other"])
def test_any_known_key_opens_it_from_anywhere(key):
    headers = {"authorization": f"bearer {key}"}
    door = client(keys=["right", "other"], address=ELSEWHERE)
    assert door.post("/v1/completions", json=REQUEST, headers=headers).status_code == 200


def test_without_keys_only_this_machine_is_answered():
    assert client().get("/v1/models").status_code == 200
    assert "start it with --api-key" in error_of(client(address=ELSEWHERE).get("/v1/models"), 403)["message"]
    assert error_of(client(address=ELSEWHERE).post("/v1/completions", json=REQUEST), 403)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("", False),
        ("localhost.example.org", False),
    ],
)  # fmt: skip
def test_loopback(host, is_local):
    assert is_loopback(host) == is_local


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("{", 400, "no valid JSON"),
        ("[" * 100_000, 400, "no valid JSON"),
        ("[1]", 400, "JSON object, not list"),
        ("{}", 400, "served are bridge-rl, bridge-sft"),
        ('{"model": 3}', 400, "served are bridge-rl, bridge-sft"),
        ('{"model": "gpt-9"}', 404, "no model is called 'gpt-9'"),
    ],
)
def test_a_bad_request_is_told_what_to_change(body, status, words):
    answer = client().post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert words in error_of(answer, status)["message"]


def test_a_request_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(door, "MAX_BODY_BYTES", 100)
    assert error_of(client().post("/v1/completions", json=REQUEST | {"prompt": "x" * 200}), 413)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/collective_rpc", "POST", 404),
        ("/v1/load_lora_adapter", "POST", 404),
        ("/v1/chat/completions/batch", "POST", 404),
        ("/update_weights", "POST", 404),
        ("/docs", "GET", 404),
        ("/openapi.json", "GET", 404),
        ("/v1/completions", "GET", 405),
    ],
)
def test_nothing_else_is_served(path, method, status):
    assert "is not served; there is GET /v1/models" in error_of(client().request(method, path), status)["message"]


def test_the_list_leaves_out_a_model_that_is_being_replaced():
    listed = client(Servers(RuntimeError(), lost="bridge-rl")).get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["bridge-sft"]


def test_a_lost_server_is_a_503_and_a_busy_one_a_429():
    lost = error_of(client(Servers(RuntimeError("secret detail"))).post("/v1/completions", json=REQUEST), 503)
    assert "try again" in lost["message"]
    assert "secret" not in lost["message"]
    assert error_of(client(Servers(RuntimeError())).get("/v1/models"), 503)
    assert error_of(client(Servers(ServerBusy())).post("/v1/completions", json=REQUEST), 429)["code"] == "server_busy"
