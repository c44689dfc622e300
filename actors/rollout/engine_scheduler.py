"""vLLM's scheduler, sending what a request says in one piece where nobody reads along.

vLLM sends every token of every request to its front end as it is made: two processes then spend a
fifth of a small model's time on messages of one token. Rollouts want whole responses, so they are
held back here. The engine's process imports this module by name (``scheduler_cls``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists


@dataclass(slots=True)
class _Held:
    """What a request has said and nobody was told.

    Attributes:
        client: who asked.
        first: the first message.
        columns: log-probabilities a token that the request asked for. A step has as many columns as
            the request of the step that asked for the most, so their number changes with the
            neighbors.
        tokens: all of them.
        logprobs: of each step.
    """

    client: int
    first: EngineCoreOutput
    columns: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[LogprobsLists] = field(default_factory=list)

    def add(self, output: EngineCoreOutput) -> None:
        self.tokens += output.new_token_ids
        if output.new_logprobs is not None:
            tokens, logprobs, ranks, _ = output.new_logprobs
            self.logprobs.append(
                LogprobsLists(tokens[:, : self.columns], logprobs[:, : self.columns], ranks)
            )

    def onto(self, last: EngineCoreOutput) -> EngineCoreOutput:
        """The message ``last`` with all that was held, and what only a first message says."""
        last.new_token_ids = self.tokens
        last.prefill_stats = self.first.prefill_stats
        if self.logprobs:
            tokens, logprobs, ranks = map(
                np.concatenate, zip(*(part[:3] for part in self.logprobs), strict=True)
            )
            last.new_logprobs = LogprobsLists(tokens, logprobs, ranks)
        return last


class WholeResponses(Scheduler):
    """Holds back the tokens of requests that ask for their final output only, until they end or
    generation pauses.

    Requests with stop strings are sent on as ever: it is the front end that finds those. So are
    those that ask for log-probabilities of the prompt, of all tokens or of tokens by name, which
    only clients of a server do. At a pause in the middle of responses ("keep") all that is held
    goes out before the pause is complete, so under the version of the weights that made it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, _Held] = {}

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        """vLLM's, without what is held back."""
        batches = super().update_from_output(*args, **kwargs)
        for client, batch in batches.items():
            batch.outputs = [
                whole
                for output in batch.outputs
                if (whole := self._pass_on(client, output)) is not None
            ]
        if self.pause_state is PauseState.PAUSED_ALL:
            self._let_go(batches)
        return batches

    def _pass_on(self, client: int, output: EngineCoreOutput) -> EngineCoreOutput | None:
        held = self._held.get(output.request_id)
        if output.finish_reason is None:
            if held is None:
                columns = self._columns(output)
                if columns is None:
                    return output
                held = self._held[output.request_id] = _Held(client, output, columns)
            held.add(output)
            return None
        if held is None:
            return output
        del self._held[output.request_id]
        held.add(output)
        return held.onto(output)

    def _columns(self, output: EngineCoreOutput) -> int | None:
        """Log-probabilities a token of a request that may wait; None if it may not."""
        request = self.requests.get(output.request_id)
        params = request.sampling_params if request else None
        if params is None or params.output_kind is not RequestOutputKind.FINAL_ONLY or params.stop:
            return None
        if params.prompt_logprobs is not None or params.logprob_token_ids or params.logprobs == -1:
            return None
        return 1 + (params.logprobs or 0)

    def _let_go(self, batches: dict[int, EngineCoreOutputs]) -> None:
        for name, held in self._held.items():
            batch = batches.setdefault(held.client, EngineCoreOutputs())
            batch.outputs = [*batch.outputs, held.onto(EngineCoreOutput(name, []))]
        self._held = {}

    def has_requests(self) -> bool:
        """vLLM's; a pause also has to wait for what is held (the engine steps once more and sends
        it).
        """
        return super().has_requests() or (
            self.pause_state is PauseState.PAUSED_ALL and bool(self._held)
        )

    def finish_requests(self, *args: Any, **kwargs: Any) -> list[Any]:
        """vLLM's, for requests that are ended from outside; nobody waits for what they said."""
        finished = super().finish_requests(*args, **kwargs)
        for request in finished:
            self._held.pop(request.request_id, None)
        return finished
