import asyncio
import json
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse

from serve import error_statuses as faults
from serve.access import file_keys
from serve.asgi import Head, post
from serve.error_statuses import FaultMiddleware, RequestFault, keeping_own_errors
from serve.versions import EngineBroken, MixedVersions

BODY = b'{"prompt": "x"}'


def answer_of(app, dead=False, fault=None):
    """Status and body that a client sees of an application with errors."""

    async def fault_of_request(path, body):
        assert (path, body) == ("/v1/completions", BODY)
        return fault

    async def ask():
        guarded = FaultMiddleware(app, lambda: dead, fault_of_request)
        head, *pieces = [piece async for piece in post(guarded, "/v1/completions", BODY)]
        assert isinstance(head, Head)
        return head.status, b"".join(pieces)

    return asyncio.run(ask())


def raising(error, status=None):
    """As Starlette does it: read the request, maybe send a 500, then raise the error again."""

    async def app(scope, receive, send):
        await receive()
        if status:
            await JSONResponse({"error": {"message": "secret detail"}}, status)(
                scope, receive, send
            )
        raise error

    return app


def stream(*events):
    async def app(scope, receive, send):
        await receive()
        body = (f"data: {event}\n\n".encode() for event in [*events, "[DONE]"])
        await StreamingResponse(body, media_type="text/event-stream")(scope, receive, send)

    return app


def reading(response):
    async def app(scope, receive, send):
        await receive()
        await response(scope, receive, send)

    return app


@pytest.mark.parametrize("status", [None, 500])
def test_what_a_request_makes_the_application_raise_is_its_own_fault(status):
    fault = RequestFault("`stop` has a wrong type", "stop")
    code, body = answer_of(raising(AttributeError("secret detail"), status), fault=fault)
    assert code == 400
    error = json.loads(body)["error"]
    assert error == {
        "message": "`stop` has a wrong type",
        "type": "invalid_request_error",
        "param": "stop",
        "code": None,
    }


@pytest.mark.parametrize("status", [None, 500])
def test_an_error_of_the_program_is_a_500_with_its_traceback_in_the_log(status, caplog):
    code, body = answer_of(raising(KeyError("secret detail"), status))
    assert code == 500
    assert b"secret" not in body
    assert any(record.exc_info and record.exc_info[0] is KeyError for record in caplog.records)


def calling(function, *arguments):
    async def app(scope, receive, send):
        await receive()
        function(*arguments)

    return app


@pytest.mark.parametrize(
    ("function", "argument"),
    # one in a frame of ours, one below it
    [(faults._status_of, None), (file_keys, Path("/absent/file"))],
)
def test_an_error_of_our_own_code_is_a_500_whatever_a_plain_request_gets(
    function, argument, caplog
):
    code, body = answer_of(calling(function, argument), fault=RequestFault("it would be blamed"))
    assert code == 500
    assert b"blamed" not in body
    assert any(record.levelname == "ERROR" and record.exc_info for record in caplog.records)


def test_an_error_of_a_library_may_be_the_requests_fault():
    code, body = answer_of(calling(httpx.URL, 5), fault=RequestFault("`stop` has a wrong type"))
    assert code == 400
    assert json.loads(body)["error"]["message"] == "`stop` has a wrong type"


def made_into(answer):
    """As vLLM does it: what an engine raises becomes an answer, and nothing is raised."""

    async def app(scope, receive, send):
        await receive()
        with suppress(AttributeError), keeping_own_errors(KeyError):
            faults._status_of(None)
        await answer(scope, receive, send)

    return app


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"error": {"message": "'NoneType' object", "code": 400}}, 400),
        StreamingResponse(
            iter([b'data: {"error": {"code": 400}}\n\n']), media_type="text/event-stream"
        ),
    ],
)
def test_an_error_of_our_own_code_that_vllm_made_a_400_of_is_a_500(answer, caplog):
    code, body = answer_of(made_into(answer), fault=RequestFault("it would be blamed"))
    assert code == 500
    assert b"NoneType" not in body
    assert any(
        record.exc_info and record.exc_info[0] is AttributeError for record in caplog.records
    )


def test_a_refusal_by_our_own_code_stays_the_answer_that_vllm_makes_of_it():
    async def app(scope, receive, send):
        await receive()
        with suppress(AttributeError), keeping_own_errors(AttributeError):
            faults._status_of(None)
        await JSONResponse({"error": {"code": 400}}, 400)(scope, receive, send)

    assert answer_of(app)[0] == 400


def test_mixed_versions_are_never_the_requests_fault():
    assert (
        answer_of(
            raising(MixedVersions("of 1 and 2"), 500), fault=RequestFault("it would be blamed")
        )[0]
        == 500
    )


def test_a_client_that_left_gets_nothing():
    async def app(scope, receive, send):
        await receive()

    async def ask():
        return [
            piece
            async for piece in post(
                FaultMiddleware(app, lambda: False, None), "/v1/completions", BODY
            )
        ]

    assert asyncio.run(ask()) == []


@pytest.mark.parametrize(
    "app", [raising(KeyError(), 500), raising(KeyError()), stream('{"error": {"code": 500}}')]
)
def test_an_answer_of_a_dead_engine_tells_the_gateway(app):
    with pytest.raises(EngineBroken):
        answer_of(app, dead=True, fault=RequestFault("not asked for"))


def test_what_is_not_implemented_is_the_requests_fault():
    app = reading(JSONResponse({"error": {"message": "suffix is not supported"}}, 501))
    code, body = answer_of(app)
    assert code == 400
    assert json.loads(body)["error"]["message"] == "suffix is not supported"


def test_a_stream_that_begins_with_an_error_is_an_error():
    error = {
        "error": {
            "message": "no such grammar",
            "type": "BadRequestError",
            "param": "structured_outputs",
        }
    }
    error["error"]["code"] = 400
    code, body = answer_of(stream(json.dumps(error)))
    assert code == 400
    assert json.loads(body) == error
    assert answer_of(stream('{"error": {"message": "x", "code": 500}}'))[0] == 500
    assert (
        answer_of(stream('{"error": {"message": "x", "code": 500}}'), fault=RequestFault("x"))[0]
        == 400
    )


@pytest.mark.parametrize(
    "events", [['{"choices": []}', '{"error": {"code": 500}}'], [], ['{"error": null}']]
)
def test_other_streams_pass_as_they_are(events):
    code, body = answer_of(stream(*events))
    assert code == 200
    assert body == b"".join(f"data: {event}\n\n".encode() for event in [*events, "[DONE]"])


@pytest.mark.parametrize("status", [200, 400, 404])
def test_other_answers_pass_as_they_are(status):
    assert answer_of(reading(Response(b'{"error": 1}', status))) == (status, b'{"error": 1}')


def test_an_answer_that_breaks_off_is_not_made_whole():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError("cut")

    with pytest.raises(KeyError):
        answer_of(app)
