"""vLLM's OpenAI routes over an engine of ours.

Their defaults make greedy text the same as in evaluations.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bi_ray.policy.chat import end_tokens
from bi_ray.policy.checkpoint import load_tokenizer
from serve.asgi import Head, post
from serve.error_statuses import RequestFault
from serve.errors import JsonObject

if TYPE_CHECKING:
    from pydantic import BaseModel
    from starlette.types import ASGIApp
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger("ray.serve")
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_PROBES = {
    COMPLETIONS: {"prompt": "a", "max_tokens": 1},
    CHAT: {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
}


def engine_options() -> dict[str, Any]:
    """Engine arguments of a served policy, besides those of every engine of the run."""
    from vllm.config import StructuredOutputsConfig

    return {
        # vLLM's own sampling defaults, not those of the checkpoint's generation_config.json:
        # evaluations do not read them either. End tokens are still taken from there, as in
        # evaluations.
        "generation_config": "vllm",
        # No second backend for what xgrammar refuses: llguidance takes memory in proportion to
        # numbers such as `minItems`.
        "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar"),
    }


async def openai_routes(
    engine: AsyncLLM, directory: Path, name: str, max_response_tokens: int
) -> ASGIApp:
    """The OpenAI application of vLLM; the whole protocol is vLLM's.

    Args:
        engine: answers.
        directory: the checkpoint.
        name: the model's name in requests.
        max_response_tokens: limit for a chat's answer if its request names none.
    """
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    options = ["--model", str(directory), "--served-model-name", name]
    # Prompts are those of training: messages are strings, and the tokenizer's template is used, not
    # a processor's.
    options += ["--chat-template-content-format", "string"]
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(options)
    tokenizer = load_tokenizer(directory)
    arguments.chat_template = tokenizer.get_chat_template()
    app = build_app(arguments, ("generate",))
    await init_app_state(engine, app.state, arguments, ("generate",))
    app.state.server = SimpleNamespace(should_exit=False)  # vLLM's error handler writes to it
    # As in training and evaluations: a template may end a turn by another token than the EOS, and
    # vLLM knows only the EOS.
    ends = [token for token in end_tokens(tokenizer) if token != tokenizer.eos_token_id]
    for serving in (app.state.openai_serving_chat, app.state.openai_serving_completion):
        serving.default_sampling_params["stop_token_ids"] = ends
    app.state.openai_serving_chat.default_sampling_params["max_tokens"] = max_response_tokens
    return app


async def fault_of_request(app: ASGIApp, name: str, path: str, body: bytes) -> RequestFault | None:
    """Why a request to ``app`` failed, if it was the request's own fault.

    It was if the request cannot be read, or if the application still answers a plain request on the
    same path. ``FaultMiddleware`` does not ask about errors of ours: a plain request may not reach
    the same code.

    Args:
        app: from ``openai_routes``.
        name: of its model.
        path: of the request.
        body: of the request, JSON.
    """
    content = json.loads(body)
    request_type = _request_type(path)
    if not _is_readable(request_type, content):
        field = _unreadable_field(request_type, content)
        subject = f"`{field}`" if field else "the request"
        return RequestFault(f"{subject} has an invalid type or value; see the API reference", field)
    if await _answers(app, path, {"model": name} | _PROBES[path]):
        return RequestFault("this combination of options is not supported; send fewer options")
    return None


def _request_type(path: str) -> type[BaseModel]:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return ChatCompletionRequest if path == CHAT else CompletionRequest


def _is_readable(request_type: type[BaseModel], content: JsonObject) -> bool:
    try:
        request_type.model_validate(content)
    except Exception:  # vLLM's validators raise whatever the value makes them raise
        logger.debug("a request that %s does not read", request_type.__name__, exc_info=True)
        return False
    return True


def _unreadable_field(request_type: type[BaseModel], content: JsonObject) -> str | None:
    """The first field without which the request can be read."""
    for name in content:
        others = {other: value for other, value in content.items() if other != name}
        if _is_readable(request_type, others):
            return name
    return None


async def _answers(app: ASGIApp, path: str, content: JsonObject) -> bool:
    """Whether ``app`` has an answer to a request."""
    try:
        pieces = [piece async for piece in post(app, path, json.dumps(content).encode())]
    except Exception:
        logger.warning("a plain request failed too", exc_info=True)
        return False
    return isinstance(pieces[0], Head) and pieces[0].status == 200
