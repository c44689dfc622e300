import asyncio
import json

import httpx
import pytest
from fastapi.testclient import TestClient

from serve import gateway
from serve.access import Access, key_digest
from serve.asgi import Head
from serve.gateway import ServerBusy, ServerLost, make_app

HERE, ELSEWHERE = ("127.0.0.1", 5000), ("203.0.113.7", 5000)
REQUEST = {"model": "bridge-rl", "prompt": "x"}
JSON = {"content-type": "application/json"}


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
        yield Head(
            200,
            {
                "content-type": "text/event-stream" if self.stream else "application/json",
                "x-seen": "1",
            },
        )
        yield json.dumps({"name": name, "path": path, "body": json.loads(body)}).encode()


def client(servers=None, keys=(), address=HERE, raises=True, stop=(), **allowed):
    access = Access(tuple(map(key_digest, keys)), **allowed)
    app = make_app(servers or Servers(), access, stop)
    return TestClient(
        app, base_url="http://127.0.0.1:8000", client=address, raise_server_exceptions=raises
    )


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
    own = client().post("/v1/completions", json=REQUEST | {"skip_special_tokens": True}).json()
    assert own["body"]["skip_special_tokens"] is True


def test_a_chat_ends_at_the_strings_that_end_a_response_of_training():
    app = client(stop=["</answer>"])
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


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/bridge-rl", "/v1/completions", "/v1/chat/completions"]
)
@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer ", "Basic right", "right", "Bearer right2"]
)
def test_without_a_known_key_nobody_is_let_in(path, header):
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
    server = client(keys=["right", "other"], address=ELSEWHERE)
    assert server.post("/v1/completions", json=REQUEST, headers=headers).status_code == 200


def test_without_keys_only_this_machine_is_answered():
    assert client().get("/v1/models").status_code == 200
    assert (
        "start it with --api-key"
        in error_of(client(address=ELSEWHERE).get("/v1/models"), 403)["message"]
    )
    assert error_of(client(address=ELSEWHERE).post("/v1/completions", json=REQUEST), 403)


@pytest.mark.parametrize(
    "name", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Proto"]
)
def test_without_keys_a_proxy_is_refused_where_it_shows(name):
    headers = {name: "203.0.113.7"}
    error = error_of(client().get("/v1/models", headers=headers), 403)
    assert "through a proxy" in error["message"]
    assert "--api-key" in error["message"]
    headers["authorization"] = "Bearer right"
    assert client(keys=["right"]).get("/v1/models", headers=headers).status_code == 200


def test_a_page_that_points_its_name_to_this_machine_is_refused():
    rebound = {"host": "evil.example.org:8000", "origin": "http://evil.example.org:8000"}
    assert (
        "--allowed-host evil.example.org"
        in error_of(client().get("/v1/models", headers=rebound), 403)["message"]
    )
    error_of(client().post("/v1/completions", json=REQUEST, headers=rebound), 403)
    error_of(client().get("/health", headers=rebound), 403)
    assert (
        client(allowed_hosts=("evil.example.org",)).get("/v1/models", headers=rebound).status_code
        == 200
    )


def test_a_browser_of_an_allowed_origin_may_ask_and_read():
    page = "https://app.example.org"
    asks = {
        "origin": page,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    error_of(client(keys=["right"]).options("/v1/completions", headers=asks), 403)
    allowed = client(keys=["right"], allowed_origins=(page,))
    assert (
        allowed.options("/v1/completions", headers=asks).headers["access-control-allow-origin"]
        == page
    )
    headers = {"origin": page, "authorization": "Bearer right"}
    answer = allowed.post("/v1/completions", json=REQUEST, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == page


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "json",
        "text/plain; application/json",
        "application/json-seq",
        "application/jsonx",
    ],
)
def test_a_body_that_a_web_page_may_send_unasked_is_refused(media_type):
    headers = {} if media_type is None else {"content-type": media_type}
    answer = client().post("/v1/completions", content=json.dumps(REQUEST), headers=headers)
    assert "Content-Type: application/json" in error_of(answer, 415)["message"]


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON ; charset=utf-8"])
def test_json_is_json_with_and_without_parameters(media_type):
    answer = client().post(
        "/v1/completions", content=json.dumps(REQUEST), headers={"content-type": media_type}
    )
    assert answer.status_code == 200


def test_a_body_that_does_not_come_in_time_is_refused(monkeypatch):
    async def trickle():
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async def ask():
        transport = httpx.ASGITransport(make_app(Servers(), Access()), client=HERE)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as slow:
            headers = {"content-type": "application/json"}
            return await slow.post("/v1/completions", content=trickle(), headers=headers)

    monkeypatch.setattr(gateway, "BODY_TIMEOUT_S", 0.05)
    answer = asyncio.run(ask())
    assert "did not arrive within 0.05 s" in error_of(answer, 408)["message"]
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "bridge-rl", "request_id": "\\ud800"}',
        '{"model": "bridge-rl", "request_id": ["a", {"b": "\\udc00\\ud800"}]}',
        '{"model": "bridge-rl", "request_id": {"\\udfff": 1}}',
    ],
)
def test_half_a_character_is_refused_by_name(body):
    error = error_of(client().post("/v1/completions", content=body, headers=JSON), 400)
    assert "lone surrogate" in error["message"]
    assert error["param"] == "request_id"


def test_half_a_character_is_refused_in_every_place():
    for body in ('{"model": "\\ud800"}', '{"model": "bridge-rl", "\\ud800": 1}'):
        assert client().post("/v1/completions", content=body, headers=JSON).status_code in (
            400,
            404,
        )
    whole = '{"model": "bridge-rl", "prompt": "\\ud83d\\ude42"}'
    answer = client().post("/v1/completions", content=whole, headers=JSON)
    assert answer.json()["body"]["prompt"] == "\U0001f642"


def test_a_body_of_a_million_requests_is_refused(monkeypatch):
    monkeypatch.setattr(gateway, "MAX_PROMPTS", 3)
    for prompt in (["a"] * 4, [[1]] * 4, [None] * 4):
        error = error_of(client().post("/v1/completions", json=REQUEST | {"prompt": prompt}), 400)
        assert error["param"] == "prompt"
    for prompt in (["a"] * 3, [1] * 4, [], "aaaa"):
        assert (
            client().post("/v1/completions", json=REQUEST | {"prompt": prompt}).status_code == 200
        )


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "[1e999]", '{"a": -1e999}']
)
def test_numbers_that_are_not_json_are_refused(number):
    body = f'{{"model": "bridge-rl", "temperature": {number}}}'
    error_of(client().post("/v1/completions", content=body, headers=JSON), 400)


@pytest.mark.parametrize("depth", [100, 300, 500, 800, 900, 950, 975, 990, 1000, 3000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_is_answered_or_refused(depth, opening, closing):
    body = '{"model": "bridge-rl", "x": ' + opening * depth + "1" + closing * depth + "}"
    assert client().post("/v1/completions", content=body, headers=JSON).status_code in (200, 400)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("{", 400, "not valid JSON"),
        ("[" * 100_000, 400, "not valid JSON"),
        ("[1]", 400, "JSON object, not list"),
        ("{}", 400, "served are bridge-rl, bridge-sft"),
        ('{"model": 3}', 400, "served are bridge-rl, bridge-sft"),
        ('{"model": "gpt-9"}', 404, "no model is called 'gpt-9'"),
    ],
)
def test_a_bad_request_is_told_what_to_change(body, status, words):
    answer = client().post(
        "/v1/completions", content=body, headers={"content-type": "application/json"}
    )
    assert words in error_of(answer, status)["message"]


def test_a_request_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(gateway, "MAX_BODY_BYTES", 100)
    assert error_of(client().post("/v1/completions", json=REQUEST | {"prompt": "x" * 200}), 413)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/collective_rpc", "POST", 404),
        ("/v1/load_lora_adapter", "POST", 404),
        ("/v1/chat/completions/batch", "POST", 404),
        ("/update_weights", "POST", 404),
        ("/docs", "GET", 404),
        ("/v1/completions/", "POST", 404),
        ("/v1/models/", "GET", 404),
        ("/openapi.json", "GET", 404),
        ("/v1/completions", "GET", 405),
    ],
)
def test_nothing_else_is_served(path, method, status):
    assert (
        "is not served; there is GET /v1/models"
        in error_of(client().request(method, path), status)["message"]
    )


def test_the_list_leaves_out_a_model_that_is_being_replaced():
    listed = client(Servers(ServerLost(), lost="bridge-rl")).get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["bridge-sft"]


def test_a_lost_server_is_a_503_and_a_busy_one_a_429():
    lost = error_of(
        client(Servers(ServerLost("secret detail"))).post("/v1/completions", json=REQUEST), 503
    )
    assert "try again" in lost["message"]
    assert "secret" not in lost["message"]
    assert error_of(client(Servers(ServerLost())).get("/v1/models"), 503)
    assert (
        error_of(client(Servers(ServerBusy())).post("/v1/completions", json=REQUEST), 429)["code"]
        == "server_busy"
    )


def test_an_error_of_the_program_is_a_500_with_its_traceback_in_the_log(caplog):
    broken = client(Servers(KeyError("secret detail")), raises=False)
    with caplog.at_level("ERROR", "ray.serve"):
        error = error_of(broken.post("/v1/completions", json=REQUEST), 500)
    assert "secret" not in error["message"]
    assert "try again" not in error["message"]
    assert any(record.exc_info and record.exc_info[0] is KeyError for record in caplog.records)
