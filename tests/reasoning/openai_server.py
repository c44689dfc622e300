"""A server that speaks OpenAI's protocol and answers as a test scripts it; run as a program it
counts on disk.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

NUMBERS = re.compile(r"Tim has (\d+) pears and buys (\d+)")


def row(a: int, b: int) -> dict[str, str]:
    """A problem that the server can read."""
    return {
        "question": f"Tim has {a} pears and buys {b} more. How many has he?",
        "chain_of_thought": f"He has {a} + {b} = {a + b} pears.",
        "answer": str(a + b),
    }


def extraction(a: int, b: int) -> str:
    given = {"step": "", "parents": []}
    nodes = [
        {
            **given,
            "name": "first",
            "description": "pears at first",
            "expression": str(a),
            "value": str(a),
        },
        {
            **given,
            "name": "bought",
            "description": "pears bought",
            "expression": str(b),
            "value": str(b),
        },
        {
            "step": f"He has {a} + {b} = {a + b} pears.",
            "name": "total",
            "description": "pears in the end",
            "parents": ["first", "bought"],
            "expression": "first + bought",
            "value": str(a + b),
        },
    ]
    return json.dumps({"nodes": nodes, "answer": "total"})


class Endpoint:
    """``faults``: what happens to the first requests about a row, by its first number; then it is
    answered right.
    """

    def __init__(self, faults: dict[int, list[str]] | None = None, seconds: float = 0.0) -> None:
        self.faults = {number: list(names) for number, names in (faults or {}).items()}
        self.seconds = seconds
        self.requests: list[dict] = []
        self.times: dict[int, list[float]] = {}
        self.asked: Counter[int] = Counter()
        self.in_flight = self.most_in_flight = 0
        self.keys: set[str] = set()
        self.url = ""
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.answer)

    async def answer(self, request: Request) -> Response:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.keys.add(request.headers.get("authorization", ""))
        match = NUMBERS.search(body["messages"][-1]["content"])
        assert match is not None
        a, b = map(int, match.groups())
        self.asked[a] += 1
        self.times.setdefault(a, []).append(time.monotonic())
        await asyncio.sleep(self.seconds)
        faults = self.faults.get(a) or self.faults.get(-1) or []
        fault = (
            faults.pop(0) if faults and faults[0] != "for ever" else faults[-1] if faults else ""
        )
        content = extraction(a, b)
        match fault:
            case "429" | "500" | "503" | "401" | "404" | "400":
                error = {"error": {"message": f"scripted {fault}", "type": "scripted"}}
                return JSONResponse(
                    error, int(fault), {"Retry-After": "1"} if fault == "429" else None
                )
            case "hang":
                await asyncio.sleep(6)
            case "broken body":
                return Response('{"id": "x", "choices": [{"mess', media_type="application/json")
            case "web page":
                return Response("<html>Bad gateway</html>", media_type="text/html")
            case "no choices":
                return JSONResponse(completion(content) | {"choices": []})
            case "truncated":
                return JSONResponse(completion(content[: len(content) // 2]))
            case "length":
                return JSONResponse(completion(content[: len(content) // 2], "length"))
            case "wrong":
                content = content.replace('"first + bought"', '"first - bought"')
            case "for ever":
                return JSONResponse({"error": {"message": "scripted outage"}}, 503)
        return JSONResponse(completion(content))


def completion(content: str, finish_reason: str = "stop") -> dict:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [choice],
    }


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """The endpoint behind HTTP on a port of its own until the end of the block."""
    server = uvicorn.Server(uvicorn.Config(endpoint.app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    endpoint.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    yield endpoint
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()
