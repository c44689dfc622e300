"""One vLLM engine: the class that owns it, and the Ray actor around that class as the pool sees it.

The engine runs in a process of its own that vLLM spawns; it answers a ping between two steps. vLLM
is imported when the engine starts: the pool, which needs only the names of this module, stays
light.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from actors.rollout.engine import (
    WARM_UP_TOKENS,
    engine_arguments,
    engine_environment,
    replace_weights,
)
from actors.weights.base import Announcement, WeightSync
from actors.weights.shared_memory import SharedMemorySync
from bi_ray.batches.rollout import Group, GroupRequest, Sample
from bi_ray.config import ModelConfig, RolloutConfig
from bi_ray.policy.chat import ChatError, check_tokens, end_tokens
from bi_ray.policy.version import PolicyVersion, VersionSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")
INITIAL_VERSION = PolicyVersion(0, 0)  # the checkpoint that an engine was built from
_CLOSE_TIMEOUT_S = 20.0
_KILLED = (-signal.SIGKILL, -signal.SIGTERM)  # exit codes
_CONTEXT_TOKENS = 4  # of the prompt, enough for a character that spans tokens


class RequestError(ValueError):
    """The request itself is at fault (its prompt is too long, say): trying it again elsewhere is of
    no use.
    """


class WorkerLost(RuntimeError):
    """The worker will never answer again."""


class EngineCrashed(WorkerLost):
    """The engine ended by an error of its own: whatever it was working on may be at fault."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Where a worker runs: Ray node, process of the actor, process of its engine."""

    node_id: str
    pid: int
    engine_pid: int


@dataclass(frozen=True, slots=True)
class Ping:
    """A sign of life: the version that the engine holds, and how many sequences it has in work."""

    version: PolicyVersion
    running: int


class WorkerHandle(Protocol):
    """A worker as the pool sees it. Every call may raise ``WorkerLost``; deadlines are the
    caller's.
    """

    async def start(self) -> WorkerInfo:
        """Bring the engine up and warm it."""

    async def generate(self, request: GroupRequest) -> Group:
        """Sample a group; raises ``RequestError`` where the request is at fault. Cancelling ends
        the work.
        """

    async def sync(self, announcement: Announcement, in_flight: bool = False) -> None:
        """Take over the announced weights; what is running goes on with them, or is finished first."""

    async def ping(self) -> Ping:
        """Give a sign of life."""

    async def close(self) -> None:
        """End the engine in order."""

    def kill(self) -> None:
        """End everything at once; never fails, may be called at any time."""


class RolloutWorker:
    """Owns one ``AsyncLLM``.

    Args:
        model: checkpoint that the engine is built from, and its limits.
        rollout: how engines are built.
        copies: folder for weights fetched from other nodes.
    """

    def __init__(self, model: ModelConfig, rollout: RolloutConfig, copies: Path) -> None:
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
        """Build the engine, generate once to warm it, and say where everything runs.

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
        """Sample the group; sample j is drawn with seed ``request.seed + j``, as vLLM derives it
        for ``n`` samples.

        Raises:
            RequestError: the prompt is empty, too long or not in the vocabulary, or vLLM refuses
                it.
            WorkerLost: the engine is gone; ``EngineCrashed`` where it ended by itself.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
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
                # vLLM does it token by token, in the process that also answers
                detokenize=bool(sampling.stop),
                skip_special_tokens=False,
            )
            output = await self._final(list(request.prompt_tokens), params)
        except VLLMClientError as error:
            raise RequestError(f"{request.key}: {error}") from error
        except EngineDeadError as error:
            raise self._loss() from error
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
        prompt: dict[str, Any] = {"prompt_token_ids": tokens}
        # nor may a prompt find keys and values that other weights made
        if self.rollout.keep_cache_in_flight:
            prompt["cache_salt"] = str(self.version)
        running = self._running().generate(prompt, params, f"request-{self._requests}")  # type: ignore[arg-type]
        return [part async for part in running][-1]

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
        """What was said, special tokens too, but for the end token; a last character that was cut
        in two is left out.

        It is decoded behind the prompt's end: some tokenizers drop the space before a first word.
        """
        # a stop string, which vLLM leaves in; a number is an end token
        if isinstance(output.stop_reason, str):
            return output.text
        tokens, context = list(output.token_ids), list(request.prompt_tokens[-_CONTEXT_TOKENS:])
        if output.finish_reason == "stop":
            tokens.pop()
        before: Any = self._tokenizer.decode(
            context, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        text: Any = self._tokenizer.decode(
            [*context, *tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        said: str = text.removeprefix(before)
        return said.rstrip("\ufffd")

    async def sync(self, announcement: Announcement, in_flight: bool = False) -> None:
        """Take over the announced weights, and go on with them.

        What is running goes on with them, or is finished first. Requests that come in meanwhile
        wait and see the new weights only. After an error the engine stays paused: its weights are
        unknown, so the caller ends this worker.

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
            if engine.errored:  # then it is not the weights' fault
                raise self._loss() from error
            raise
        self.version = announcement.version
        self._open.set()

    async def ping(self) -> Ping:
        """A sign of life, of the engine's process too: one that is stopped or hangs gives none.

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
                # Ray's restart would serve old weights; the pool makes a successor and syncs it
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
    """The result of a remote call, with Ray's wrapping taken off its errors; cancelling ends the
    remote work too.
    """
    try:
        return await call
    except asyncio.CancelledError:
        ray.cancel(call)
        raise
    except RayTaskError as error:
        raise error.cause from None
    except ActorUnavailableError:  # cut off for now; whether it comes back, pings will tell
        raise
    except RayActorError as error:
        raise WorkerLost(str(error).splitlines()[0]) from error
