"""One served policy: a vLLM engine behind vLLM's OpenAI routes.

It takes newer versions of its policy while it serves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from actors.rollout.engine import (
    WARM_UP_TOKENS,
    engine_arguments,
    engine_environment,
    replace_weights,
)
from actors.rollout.engine_extension import checkpoint_names, loaded_names, require_names
from actors.weights.shared_memory import EXTENSION, load_file
from bi_ray.config.rollout import RolloutConfig
from bi_ray.config.run import ModelConfig
from bi_ray.policy.files import CheckpointError
from serve.asgi import Head, post
from serve.error_statuses import FaultMiddleware, RequestFault
from serve.errors import JsonObject
from serve.policies import Policy, ServeError, newest_policy, version_of
from serve.routes import engine_options, fault_of_request, openai_routes
from serve.versions import VERSION_FIELD, EngineBroken, VersionGate, VersionMiddleware

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger("ray.serve")


class PolicyServer:
    """Owns the engine of one model name.

    Args:
        run: absolute path of the run directory.
        name: which policy of the run, ``<arm>-sft``, ``<arm>-rl`` or ``base``.
        model: limits of the run's checkpoints; its path, absolute, is the base.
        rollout: how the run's engines are built; the same here, so that greedy text is the same.
        follow_s: seconds between two looks for a newer version; 0: never.
    """

    def __init__(
        self, run: Path, name: str, model: ModelConfig, rollout: RolloutConfig, follow_s: float
    ) -> None:
        self.run = run
        self.name = name
        self.model = model
        self.rollout = rollout
        self.follow_s = follow_s
        self._engine: AsyncLLM
        self._gate: VersionGate
        self._app: ASGIApp
        self._policy: Policy
        self._names: set[str] = set()
        self._follower: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Build the engine from the policy's newest version, warm it, begin to follow the run.

        Raises:
            ServeError: the run has no such policy any more.
            CheckpointError: it is damaged or not complete.
        """
        from vllm import SamplingParams

        from serve.stamped_engine import StampedEngine

        policy = newest_policy(self.run, self.name, Path(self.model.path))
        if policy is None:
            raise ServeError(
                f"{self.run} has no {self.name} any more: it was removed while the server started"
            )
        self._policy, version = policy, await asyncio.to_thread(version_of, policy)
        self._names = checkpoint_names(policy.directory)
        more = {"worker_extension_cls": EXTENSION} | engine_options()
        arguments = engine_arguments(policy.directory, self.model, self.rollout, more)
        self._engine = StampedEngine.from_engine_args(arguments)
        await self._engine.update_weight_version(version)
        warm_up = SamplingParams(max_tokens=WARM_UP_TOKENS, ignore_eos=True)
        async for _ in self._engine.generate({"prompt_token_ids": [0]}, warm_up, "warm-up"):
            pass
        self._gate = VersionGate(version)
        self._app = VersionMiddleware(await self._routes(), self._gate)
        if self.follow_s:
            self._follower = asyncio.create_task(self._follow())

    async def _routes(self) -> ASGIApp:
        """The routes of vLLM, and around them what tells whose fault an error is."""
        app = await openai_routes(
            self._engine, self._policy.directory, self.name, self.model.max_response_tokens
        )

        async def fault(path: str, body: bytes) -> RequestFault | None:
            return await fault_of_request(app, self.name, path, body)

        return FaultMiddleware(app, lambda: self._engine.errored, fault)

    async def answer(self, path: str, body: bytes) -> AsyncIterator[Head | bytes]:
        """Answer a request to one of vLLM's routes; leaving the iteration ends the work.

        Yields:
            The head, then the body in pieces.
        """
        async for piece in post(self._app, path, body):
            yield piece

    def card(self) -> JsonObject:
        """The entry of ``/v1/models``."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._policy.modified_ns // 10**9,
            "owned_by": "bi_ray",
            "max_model_len": self.model.max_model_tokens,
            VERSION_FIELD: self._gate.version,
        }

    async def refresh(self) -> None:
        """Take the newest version of the policy, if there is a newer one.

        Answers in progress finish under the weights that they began with; new ones wait meanwhile.
        A checkpoint that cannot be used changes nothing.

        Raises:
            CheckpointError, OSError, TimeoutError: the new version was not taken, and the old one
                continues to serve.
            WeightSyncError: the weights are unknown now; ``check_health`` reports it, and Serve
                replaces this server.
        """
        policy = await asyncio.to_thread(newest_policy, self.run, self.name, Path(self.model.path))
        if policy is None or policy == self._policy:
            return
        version = await asyncio.to_thread(version_of, policy)
        if version != self._gate.version:
            await self._take(policy, version)
        self._policy = policy

    async def _take(self, policy: Policy, version: str) -> None:
        names = await asyncio.to_thread(loaded_names, policy.weights)
        try:
            require_names(str(policy.weights), names, self._names)
        except ValueError as error:
            raise CheckpointError(str(error)) from error

        async def load() -> None:
            await load_file(self._engine, policy.weights, version, self.rollout.sync_timeout_s)

        # No answer takes longer than that (``request_timeout_s`` of the HTTP options), so the
        # update does not time out.
        async with self._gate.update(version, self.rollout.generate_timeout_s):
            await replace_weights(self._engine, version, load)
        logger.info(f"{self.name} serves version {version} now")

    async def _follow(self) -> None:
        reported = ""
        while True:
            await asyncio.sleep(self.follow_s)
            try:
                await self.refresh()
            except Exception as error:  # whatever it was, the next look may be better
                if self._gate.broken:
                    logger.exception(f"{self.name} has unknown weights and has to be replaced")
                    return
                if str(error) != reported:  # once, not at every look
                    reported = str(error)
                    logger.warning(
                        f"{self.name} stays at version {self._gate.version}: {reported}",
                        exc_info=True,
                    )

    async def check_health(self) -> None:
        """Called by Serve now and then.

        Raises:
            EngineBroken: this server must be replaced.
        """
        if self._gate.broken:
            raise EngineBroken(self._gate.broken)
        if self._engine.errored:
            raise EngineBroken("the engine's process ended")


def server_environment(rollout: RolloutConfig) -> dict[str, str]:
    """Variables for the processes of a ``PolicyServer``."""
    return engine_environment(rollout) | {
        # sequences of one request: no more than are decoded at a time
        "VLLM_MAX_N_SEQUENCES": str(rollout.max_sequences),
        # the gateway checks keys, and only the gateway reaches vLLM's routes
        "VLLM_API_KEY": "",
        "VLLM_SERVER_DEV_MODE": "0",
    }
