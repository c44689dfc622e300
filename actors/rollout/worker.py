"""One vLLM engine: the class that owns it, and the Ray actor around that class.

The engine runs in a process of its own that vLLM spawns; it answers a ping between two steps. vLLM
is imported when the engine starts, in the actor alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from actors.logs import start_logging
from actors.rollout.engine import (
    WARM_UP_TOKENS,
    engine_arguments,
    engine_environment,
    replace_weights,
)
from actors.rollout.handle import (
    INITIAL_VERSION,
    EngineCrashed,
    Ping,
    RequestError,
    WorkerFailed,
    WorkerInfo,
    WorkerLost,
    describe,
)
from actors.weights.base import Announcement, WeightSync
from actors.weights.shared_memory import SharedMemorySync
from bi_ray.batches.rollout import Group, GroupRequest, Sample
from bi_ray.config.rollout import RolloutConfig
from bi_ray.config.run import ModelConfig
from bi_ray.policy.chat import ChatError, check_tokens, end_tokens
from bi_ray.policy.version import PolicyVersion, VersionSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")
_CLOSE_TIMEOUT_S = 20.0
_KILLED = (-signal.SIGKILL, -signal.SIGTERM)  # exit codes
_CONTEXT_TOKENS = 4  # of the prompt, enough for a character that spans tokens


class RolloutWorker:
    """Owns one ``AsyncLLM``.

    Args:
        model: checkpoint that the engine is built from, and its limits.
        rollout: how engines are built.
        copies: folder for weights fetched from other nodes, from ``new_copies_directory``.
    """

    def __init__(self, model: ModelConfig, rollout: RolloutConfig, copies: Path) -> None:
        start_logging("worker")
        self.model = model
        self.rollout = rollout
        self.version = INITIAL_VERSION
        self._weights: WeightSync = SharedMemorySync(copies)
        self._engine: AsyncLLM | None = None
        self._tokenizer: PreTrainedTokenizerBase
        self._ends: tuple[int, ...]
        self._requests = 0
        self._open = asyncio.Event()  # new requests may go to the engine
        self._open.set()

    async def start(self) -> WorkerInfo:
        """Build the engine and generate once to warm it.

        Raises:
            WeightSyncError: this machine cannot sync weights the way that the config wants.
            CheckpointError: the model directory is not complete.
            ChatError: no token ends a response.
        """
        from vllm.v1.engine.async_llm import AsyncLLM

        from bi_ray.policy.checkpoint import load_tokenizer

        arguments = engine_arguments(
            self.model.path, self.model, self.rollout, self._weights.engine_options()
        )
        self._tokenizer = load_tokenizer(self.model.path)
        self._ends = end_tokens(self._tokenizer)
        self._engine = AsyncLLM.from_engine_args(arguments)
        engine_pids = await self._engine.collective_rpc("engine_pid")
        await self._engine.update_weight_version(str(self.version))
        await self._warm_up()
        return WorkerInfo(ray.get_runtime_context().get_node_id(), os.getpid(), engine_pids[0])

    async def _warm_up(self) -> None:
        from vllm import SamplingParams

        await self._final(
            [0], SamplingParams(max_tokens=WARM_UP_TOKENS, ignore_eos=True, seed=0, logprobs=0)
        )

    async def generate(self, request: GroupRequest) -> Group:
        """Sample the group.

        Sample j is drawn with seed ``request.seed + j``: vLLM derives it so for ``n`` samples.

        Raises:
            RequestError: the prompt is empty, too long or not in the vocabulary, or vLLM refuses
                it.
            WorkerFailed: vLLM failed on it.
            WorkerLost: the engine is gone; ``EngineCrashed`` if it ended by itself.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError, VLLMError
        from vllm.v1.engine.exceptions import EngineDeadError

        self._check_prompt(request)
        sampling = request.sampling
        try:
            params = SamplingParams(
                n=sampling.samples,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=request.seed,
                stop=list(sampling.stop),
                stop_token_ids=list(self._ends),
                include_stop_str_in_output=True,
                logprobs=0,  # those of the sampled tokens and no others
                flat_logprobs=True,
                # vLLM decodes token by token, in the process that also answers: only where stop
                # strings have to be found
                detokenize=bool(sampling.stop),
                skip_special_tokens=False,
            )
            output = await self._final(list(request.prompt_tokens), params)
        except VLLMClientError as error:
            raise RequestError(f"{request.key}: {error}") from error
        except EngineDeadError as error:
            raise self._loss() from error
        except VLLMError as error:
            cause = error.__cause__ or error
            raise WorkerFailed(f"the engine failed: {describe(cause)}") from error
        return Group(
            request.key,
            request.prompt_tokens,
            [self._sample(request, part) for part in output.outputs],
        )

    def _check_prompt(self, request: GroupRequest) -> None:
        tokens, limit = len(request.prompt_tokens), self.model.max_prompt_tokens
        if not tokens:
            raise RequestError(f"{request.key}: the prompt is empty")
        if tokens > limit:
            raise RequestError(
                f"{request.key}: the prompt has {tokens} tokens, model.max_prompt_tokens is {limit}"
            )
        try:
            check_tokens(self._tokenizer, request.prompt_tokens)
        except ChatError as error:
            raise RequestError(f"{request.key}: {error}") from error

    async def _final(self, tokens: list[int], params: Any) -> RequestOutput:
        """The engine's answer when all samples are finished."""
        from vllm.sampling_params import RequestOutputKind

        params.output_kind = RequestOutputKind.FINAL_ONLY
        await self._open.wait()
        self._requests += 1
        prompt: Any = {"prompt_token_ids": tokens}
        if self.rollout.keep_cache_in_flight:
            # a prompt must not find keys and values that other weights made
            prompt["cache_salt"] = str(self.version)
        outputs = self._running().generate(prompt, params, f"request-{self._requests}")
        return [output async for output in outputs][-1]

    def _sample(self, request: GroupRequest, output: CompletionOutput) -> Sample:
        spans = tuple(
            VersionSpan(PolicyVersion.parse(span.version), span.end - span.start)
            for span in output.weight_versions or []
        )
        assert output.logprobs is not None
        return Sample(
            tokens=list(output.token_ids),
            logprobs=list(output.logprobs.logprobs),  # type: ignore[union-attr]
            text=self._text(request, output),
            truncated=output.finish_reason == "length",
            version=min((span.version for span in spans), default=self.version),
            spans=spans,
        )

    def _text(self, request: GroupRequest, output: CompletionOutput) -> str:
        """The response as text, with special tokens but without the end token.

        A last character that was cut in two is left out. The tokens are decoded together with the
        prompt's end: some tokenizers drop the space before a first word.
        """
        if isinstance(output.stop_reason, str):
            return output.text  # vLLM leaves a stop string in; a number would be an end token
        tokens = list(output.token_ids)
        if output.finish_reason == "stop":
            tokens.pop()
        context = list(request.prompt_tokens[-_CONTEXT_TOKENS:])
        text = self._decode([*context, *tokens]).removeprefix(self._decode(context))
        return text.rstrip("\ufffd")

    def _decode(self, tokens: list[int]) -> str:
        text: Any = self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    async def sync(self, announcement: Announcement, in_flight: bool = False) -> None:
        """Load the announced weights, and continue with them.

        Requests that come in meanwhile wait and see the new weights only. After an error the engine
        stays paused: its weights are unknown, so the caller ends this worker.

        Args:
            announcement: the weights.
            in_flight: running requests continue under the new weights; else they finish first.

        Raises:
            WeightSyncError: the weights could not be loaded.
            WorkerLost: the engine's process ended over it.
        """
        engine = self._running()

        async def load() -> None:
            await self._weights.load(engine, announcement, self.rollout.sync_timeout_s)

        keep_cache = in_flight and self.rollout.keep_cache_in_flight
        self._open.clear()
        try:
            await replace_weights(engine, str(announcement.version), load, in_flight, keep_cache)
        except Exception as error:
            if engine.errored:  # the weights are not at fault
                raise self._loss() from error
            raise
        self.version = announcement.version
        self._open.set()

    async def ping(self) -> Ping:
        """A sign of life, also of the engine's process: one that is stopped or hangs gives none.

        Raises:
            WorkerLost: the engine is gone.
        """
        engine = self._running()
        if engine.errored:
            raise self._loss()
        await engine.collective_rpc("engine_pid")
        return Ping(self.version, engine.get_num_unfinished_requests())

    def _loss(self) -> WorkerLost:
        """What ended the engine's process: a signal from outside, or an error of its own."""
        manager = self._running().engine_core.resources.engine_manager
        for code in manager.finished_procs().values():
            if code in _KILLED:
                return WorkerLost(f"the engine's process was killed by signal {-code}")
        return EngineCrashed("the engine's process crashed")

    async def close(self) -> None:
        """End the engine's process."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _running(self) -> AsyncLLM:
        if self._engine is None:
            raise WorkerLost("the engine is not running")
        return self._engine


class RayWorker:
    """A ``RolloutWorker`` in a Ray actor; a ``WorkerHandle``."""

    def __init__(self, model: ModelConfig, rollout: RolloutConfig, copies: Path) -> None:
        self._actor: Any = (
            ray.remote(RolloutWorker)
            .options(
                num_cpus=rollout.cpus_per_worker,
                num_gpus=rollout.gpus_per_worker,
                # a worker restarted by Ray would serve old weights; the pool makes a successor
                # and syncs it
                max_restarts=0,
                runtime_env={"env_vars": engine_environment(rollout)},
            )
            .remote(model, rollout, copies)
        )

    async def start(self) -> WorkerInfo:
        """See ``WorkerHandle``."""
        return await _await(self._actor.start.remote())

    async def generate(self, request: GroupRequest) -> Group:
        """See ``WorkerHandle``."""
        return await _await(self._actor.generate.remote(request))

    async def sync(self, announcement: Announcement, in_flight: bool = False) -> None:
        """See ``WorkerHandle``."""
        await _await(self._actor.sync.remote(announcement, in_flight))

    async def ping(self) -> Ping:
        """See ``WorkerHandle``."""
        return await _await(self._actor.ping.remote())

    async def close(self) -> None:
        """End the engine in order, then the actor; a close that hangs is cut short."""
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await _await(self._actor.close.remote())
        finally:
            self.kill()

    def kill(self) -> None:
        """See ``WorkerHandle``; the engine's process follows."""
        ray.kill(self._actor, no_restart=True)


async def _await(call: Awaitable[T]) -> T:
    """The result of a remote call; cancelling it ends the remote work, too.

    Raises:
        WorkerLost: the actor is gone.
        WorkerFailed: the actor cannot be reached, or Ray failed in another way.
        Exception: what the actor's code raised; its cause has the traceback from over there.
    """
    try:
        return await call
    except asyncio.CancelledError:
        ray.cancel(call)
        raise
    except RayTaskError as error:
        raise error.cause from error
    except ActorUnavailableError as error:  # whether it comes back, pings will show
        raise WorkerFailed(_first_line(error)) from error
    except RayActorError as error:
        raise WorkerLost(_first_line(error)) from error
    except RayError as error:
        raise WorkerFailed(f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
