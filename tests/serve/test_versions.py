import asyncio
import json

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from serve.versions import EngineBroken, VersionGate, VersionMiddleware, announced_version

SOON = 0.05


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def test_answers_share_the_gate_and_an_update_waits_for_all_of_them():
    async def scenario():
        gate, order = VersionGate("a"), []
        ends = [asyncio.Event() for _ in range(3)]

        async def answer(number):
            async with gate.answer() as version:
                order.append(f"begin {number} {version}")
                await ends[number].wait()
                order.append(f"end {number} {gate.version}")

        async def update():
            async with gate.update("b", 10):
                order.append("update")

        first = [asyncio.create_task(answer(number)) for number in (0, 1)]
        await settle()
        updating = asyncio.create_task(update())
        await settle()
        late = asyncio.create_task(answer(2))
        await settle()
        ends[0].set()
        await settle()
        # the late one waits, and so does the update
        assert order == ["begin 0 a", "begin 1 a", "end 0 a"]
        ends[1].set()
        ends[2].set()
        await asyncio.gather(*first, updating, late)
        assert order[3:] == ["end 1 a", "update", "begin 2 b", "end 2 b"]

    asyncio.run(scenario())


def test_an_update_that_must_wait_too_long_changes_nothing():
    async def scenario():
        gate = VersionGate("a")
        async with gate.answer():
            with pytest.raises(TimeoutError):
                async with gate.update("b", SOON):
                    pytest.fail("an answer was under way")
        async with gate.answer() as version:
            assert version == "a"
        async with gate.update("b", SOON):
            pass
        assert gate.version == "b"

    asyncio.run(scenario())


def test_after_a_failed_update_every_answer_is_refused():
    async def scenario():
        gate = VersionGate("a")

        async def answer():
            async with gate.answer():
                pytest.fail("the weights are unknown")

        async def fail():
            async with gate.update("b", SOON):
                await settle()
                raise ValueError("torn file")

        updating = asyncio.create_task(fail())
        await asyncio.sleep(0)
        waiting = asyncio.create_task(answer())
        with pytest.raises(ValueError, match="torn"):
            await updating
        for call in (waiting, answer()):
            with pytest.raises(EngineBroken, match="version b was not loaded: torn file"):
                await call

    asyncio.run(scenario())


def test_many_answers_and_updates_never_overlap():
    async def scenario():
        gate, loading, seen = VersionGate("0"), False, set()

        async def answer(number):
            await asyncio.sleep(number % 7 / 1000)
            async with gate.answer() as version:
                await asyncio.sleep(number % 5 / 1000)
                assert not loading
                assert gate.version == version
                seen.add(version)

        async def updates():
            nonlocal loading
            for number in range(1, 5):
                async with gate.update(str(number), 10):
                    loading = True
                    await asyncio.sleep(0.001)
                    loading = False

        async def stream(start):
            for number in range(start, start + 20):
                await answer(number)

        await asyncio.gather(*map(stream, range(8)), updates())
        assert "4" in seen

    asyncio.run(scenario())


async def plain(_):
    return JSONResponse({"id": 1, "announced": announced_version.get()})


async def events(_):
    async def body():
        yield 'data: {"text": "data: {"}\n\n'
        yield 'data: {"n": 1}\n\ndata: {"n": 2}\n\n'
        yield "data: [DONE]\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


@pytest.fixture
def client():
    gate = VersionGate('rl-20-"x"')
    app = Starlette(
        routes=[Route("/plain", plain), Route("/error", error), Route("/events", events)]
    )
    return TestClient(VersionMiddleware(app, gate))


async def error(_):
    return JSONResponse({"error": {"message": "no"}}, 400)


def test_an_answer_says_its_version_in_header_and_body(client):
    answer = client.get("/plain")
    assert int(answer.headers.get("content-length", len(answer.content))) == len(answer.content)
    assert answer.headers["x-policy-version"] == 'rl-20-"x"'
    assert answer.json() == {"policy_version": 'rl-20-"x"', "id": 1, "announced": 'rl-20-"x"'}


def test_every_event_of_a_stream_says_it_and_no_other_text_is_touched(client):
    answer = client.get("/events")
    assert answer.headers["x-policy-version"] == 'rl-20-"x"'
    *pieces, last = [event.removeprefix("data: ") for event in answer.text.strip().split("\n\n")]
    assert last == "[DONE]"
    version = {"policy_version": 'rl-20-"x"'}
    assert [json.loads(piece) for piece in pieces] == [
        version | e for e in ({"text": "data: {"}, {"n": 1}, {"n": 2})
    ]


def test_an_error_keeps_its_form(client):
    answer = client.get("/error")
    assert answer.json() == {"error": {"message": "no"}}
    assert "x-policy-version" in answer.headers
