"""vLLM's scheduler, sending a response in one piece where nobody reads along.

vLLM sends every token of every request to its front end as it is made: two processes then spend a
fifth of a small model's time on messages of one token. Rollouts want whole responses, so tokens are
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
    """The output of a request that was not sent yet.

    Attributes:
        client: who asked.
        first: the first message.
        columns: number of log-probabilities per token that the request asked for. A step has as
            many columns as its most demanding request asked for, so their number changes with the
            neighbors.
        tokens: all tokens so far.
        logprobs: of each step, [tokens of the step, columns].
    """

    client: int
    first: EngineCoreOutput
    columns: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[LogprobsLists] = field(default_factory=list)

    def add(self, output: EngineCoreOutput) -> None:
        """Hold another message of the request."""
        self.tokens += output.new_token_ids
        if output.new_logprobs is not None:
            tokens, logprobs, ranks, _ = output.new_logprobs
            self.logprobs.append(
                LogprobsLists(tokens[:, : self.columns], logprobs[:, : self.columns], ranks)
            )

    def onto(self, last: EngineCoreOutput) -> EngineCoreOutput:
        """Fill the message ``last`` with everything held, and with what only a first one has."""
        last.new_token_ids = self.tokens
        last.prefill_stats = self.first.prefill_stats
        if self.logprobs:
            last.new_logprobs = LogprobsLists(
                np.concatenate([step.logprob_token_ids for step in self.logprobs]),
                np.concatenate([step.logprobs for step in self.logprobs]),
                np.concatenate([step.sampled_token_ranks for step in self.logprobs]),
            )
        return last


class WholeResponses(Scheduler):
    """Holds back the output of requests that ask for their final output only.

    It is sent when the request ends. At a pause in the middle of responses ("keep") it is sent
    before the pause is complete, and so under the version of the weights that made it.

    Requests with stop strings are sent as vLLM does it: the front end finds the strings. So are
    those that ask for log-probabilities of the prompt, of all tokens or of tokens by name, which
    only clients of a server do.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, _Held] = {}

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        """See ``Scheduler``; leaves out what is held back."""
        batches = super().update_from_output(*args, **kwargs)
        for client, batch in batches.items():
            passed = [self._pass_on(client, output) for output in batch.outputs]
            batch.outputs = [output for output in passed if output is not None]
        if self.pause_state is PauseState.PAUSED_ALL:
            self._send_held(batches)
        return batches

    def _pass_on(self, client: int, output: EngineCoreOutput) -> EngineCoreOutput | None:
        """The message to send now; None if it is held back."""
        held = self._held.get(output.request_id)
        if output.finish_reason is not None:
            if held is None:
                return output
            del self._held[output.request_id]
            held.add(output)
            return held.onto(output)
        if held is None:
            columns = self._columns(output)
            if columns is None:
                return output
            held = _Held(client, output, columns)
            self._held[output.request_id] = held
        held.add(output)
        return None

    def _columns(self, output: EngineCoreOutput) -> int | None:
        """Log-probabilities per token of a request that may be held back; None: it may not."""
        request = self.requests.get(output.request_id)
        if request is None or request.sampling_params is None:
            return None
        params = request.sampling_params
        if params.output_kind is not RequestOutputKind.FINAL_ONLY or params.stop:
            return None
        if params.prompt_logprobs is not None or params.logprob_token_ids:
            return None
        if params.logprobs == -1:
            return None
        return 1 + (params.logprobs or 0)

    def _send_held(self, batches: dict[int, EngineCoreOutputs]) -> None:
        for name, held in self._held.items():
            batch = batches.setdefault(held.client, EngineCoreOutputs())
            batch.outputs = [*batch.outputs, held.onto(EngineCoreOutput(name, []))]
        self._held = {}

    def has_requests(self) -> bool:
        """See ``Scheduler``; a pause also waits until what is held is sent, by one more step."""
        has_held = self.pause_state is PauseState.PAUSED_ALL and bool(self._held)
        return super().has_requests() or has_held

    def finish_requests(self, *args: Any, **kwargs: Any) -> list[Any]:
        """See ``Scheduler``; nobody waits for the output of requests ended from outside."""
        finished = super().finish_requests(*args, **kwargs)
        for request in finished:
            self._held.pop(request.request_id, None)
        return finished
