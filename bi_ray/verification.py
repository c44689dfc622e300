"""From a response to a verdict: exact answer, format, truncation, and the check of every line of the trace.

A reward function of the user takes the place of the exact match where the configuration names one. When it raises,
returns no finite number or takes too long, the sample ends as a data failure: a failure is never a reward of zero.
"""

from __future__ import annotations

import math
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from bi_ray.config import VerifierConfig
from bi_ray.importing import load_object
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.graph import Graph
from bi_ray.tasks.base import ChecksAnswers, Task

if TYPE_CHECKING:
    from bi_ray.problems import ProblemRow

RewardFunction = Callable[..., float]  # called with the keyword arguments question, answer and response, all text


@dataclass(frozen=True, slots=True)
class VerificationItem:
    """A response and the problem that it answers.

    Attributes:
        question: the problem's text.
        graph: the problem's graph, as ``Graph.to_json`` writes it, "" where it has none.
        answer: the right answer, as text.
        response: the response, without its end token.
        truncated: whether it ended at the length limit.
        reference: what the task needs beside the answer to check one (``Problem.reference``).
    """

    question: str
    graph: str
    answer: str
    response: str
    truncated: bool
    reference: str = ""

    @classmethod
    def of(cls, problem: ProblemRow, response: str, truncated: bool) -> VerificationItem:
        """A response to a problem."""
        return cls(problem.question, problem.graph, problem.answer, response, truncated, problem.reference)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a response is worth.

    Attributes:
        reward: 1 for a right answer, else 0, or what the user's reward function returned; plus the rewards for the
            format and for the trace.
        right: whether the last answer is the right one, whatever rewards it.
        format_right: whether it is exactly one chain of thought and one answer, and not truncated.
        truncated: whether it ended at the length limit; then it is wrong.
        trace_valid: whether every line of the chain of thought is right, None where there is no graph to check it by.
        trace_fault: what is wrong with the first bad line, None for a valid trace and without a graph.
        reflections: lines that turn back from a node, justified or not.
        analyses: lines that restate what they use.
        subgoals: lines that write the numbers out.
        first_bad_step: place of the first bad line, from 0; the number of lines where one is lacking at the end; None
            for a valid trace.
        progress: share of the needed quantities that the lines before it solve (``check.TraceReport``).
        right_reflections: lines before it that turned back from a node that was locked, for the right reason.
        corrections: lines that mend a wrong value.
        verifications: lines that compute something known again.
        plans: lines that say what needs what.
        outcome: what the user's reward function returned, 0 where the response was truncated; None: without one.
    """

    reward: float
    right: bool
    format_right: bool
    truncated: bool
    trace_valid: bool | None
    trace_fault: str | None = None
    reflections: int = 0
    analyses: int = 0
    subgoals: int = 0
    first_bad_step: int | None = None
    progress: float | None = 0.0
    right_reflections: int = 0
    corrections: int = 0
    verifications: int = 0
    plans: int = 0
    outcome: float | None = None

    @property
    def answer_reward(self) -> float:
        """The reward for the answer alone, without those for the format and for the trace."""
        return float(self.right) if self.outcome is None else self.outcome


BEHAVIOUR_FIELDS = {  # of a verdict, by the behaviour that they count
    "reflection": "reflections",
    "analysis": "analyses",
    "subgoal": "subgoals",
    "correction": "corrections",
    "verification": "verifications",
    "planning": "plans",
}


@dataclass(frozen=True, slots=True)
class DataFailure:
    """A sample without a verdict, because of its data or of the user's reward function: dropped and counted."""

    reason: str


class RewardError(ValueError):
    """A reward function or a check of the answer that raised, took too long, or returned what it must not."""


class _Timeout(BaseException):
    """Raised by the timer inside the user's code; no ``except Exception`` there can swallow it."""


def verify(
    task: Task,
    problem_graph: Graph | None,
    answer: str,
    response_text: str,
    truncated: bool,
    reward_function: Callable[[], float] | None = None,
    format_reward: float = 0.0,
    is_right: Callable[[], bool] | None = None,
    trace_reward: float = 0.0,
    trace_reward_of: Literal["progress", "valid"] = "progress",
) -> Verdict:
    """Judge one response (section 8 of docs/method.md).

    Args:
        task: reads the response.
        problem_graph: what the trace is checked against; None: it is not.
        answer: the right answer, as text.
        response_text: the response, without its end token.
        truncated: whether it ended at the length limit; then its reward is 0 whatever it says.
        reward_function: gives the reward of this response in place of the exact match.
        format_reward: added where the format is right.
        is_right: says whether the answer is right, in place of an exact match.
        trace_reward: added times the trace's progress, or where it is valid: a reward for the process.
        trace_reward_of: which of the two.

    Raises:
        RewardError: from ``reward_function`` or ``is_right``.
    """
    steps = task.parse_trace(response_text)
    trace = check_trace(steps, problem_graph, task.notation) if problem_graph is not None else None
    shown = Counter(behaviour for step in steps for behaviour in step.behaviours)
    format_right = not truncated and task.format_is_right(response_text)
    right = not truncated and (is_right() if is_right else task.parse_answer(response_text) == answer)
    outcome = None
    if reward_function:
        outcome = 0.0 if truncated else reward_function()
    reward = 0.0
    if not truncated:
        reward = (float(right) if outcome is None else outcome) + format_reward * format_right
        if trace:
            reward += trace_reward * (trace.progress if trace_reward_of == "progress" else trace.valid)
    return Verdict(
        reward=reward,
        right=right,
        format_right=format_right,
        truncated=truncated,
        trace_valid=trace.valid if trace else None,
        trace_fault=trace.reason if trace else None,
        reflections=shown["reflection"],
        analyses=shown["analysis"],
        subgoals=shown["subgoal"],
        first_bad_step=trace.first_bad_step if trace else None,
        progress=trace.progress if trace else None,
        right_reflections=trace.right_reflections if trace else 0,
        corrections=shown["correction"],
        verifications=shown["verification"],
        plans=shown["planning"],
        outcome=outcome,
    )


class Verifier:
    """Scores batches; keeps no state between them.

    Args:
        task: reads the responses.
        config: the reward function and its time limit, and the reward for the trace.
        format_reward: added where the format is right (``RLConfig.format_reward``).

    Raises:
        ConfigError: the reward function, or that which checks answers, cannot be loaded.
    """

    def __init__(self, task: Task, config: VerifierConfig, format_reward: float = 0.0) -> None:
        self.task = task
        self.sample_timeout_s = config.sample_timeout_s
        self.format_reward = format_reward
        self.trace_reward, self.trace_reward_of = config.trace_reward, config.trace_reward_of
        self.reward_function = load_reward_function(config.reward_function) if config.reward_function else None
        if isinstance(task, ChecksAnswers):
            task.prepare()

    def ready(self) -> int:
        """Identifier of the process that scores."""
        return os.getpid()

    def score(self, items: Sequence[VerificationItem]) -> list[Verdict | DataFailure]:
        """A verdict or a data failure per item, in order. Only in the main thread where others' code has a say."""
        return [self._score(item) for item in items]

    def _score(self, item: VerificationItem) -> Verdict | DataFailure:
        task = self.task

        def reward() -> float:
            assert self.reward_function is not None
            return call_reward_function(self.reward_function, item, self.sample_timeout_s)

        def is_right() -> bool:
            assert isinstance(task, ChecksAnswers)
            question, answer, reference = item.question, item.answer, item.reference
            return _guarded(
                "check of the answer",
                self.sample_timeout_s,
                lambda: task.answer_is_right(item.response, question, answer, reference),
            )

        try:
            return verify(
                task,
                Graph.from_json(item.graph) if item.graph else None,
                item.answer,
                item.response,
                item.truncated,
                reward if self.reward_function else None,
                self.format_reward,
                is_right if isinstance(task, ChecksAnswers) else None,
                self.trace_reward,
                self.trace_reward_of,
            )
        except RewardError as error:
            return DataFailure(str(error))


def load_reward_function(path: str) -> RewardFunction:
    """The function at ``package.module:function`` (``importing.load_object``).

    Raises:
        ConfigError: it cannot be loaded.
    """
    function: RewardFunction = load_object(path, f"verifier.reward_function: {path}")
    return function


def call_reward_function(function: RewardFunction, item: VerificationItem, timeout_s: float) -> float:
    """What ``function`` returns for ``item``.

    Raises:
        RewardError: it raised, ran longer than ``timeout_s`` in Python code, or returned no finite number.
    """
    value = _guarded(
        "reward function",
        timeout_s,
        lambda: function(question=item.question, answer=item.answer, response=item.response),
    )
    if not isinstance(value, Real) or not math.isfinite(value):
        raise RewardError(f"the reward function returned {value!r:.80}, which is no finite number")
    return float(value)


def _guarded(name: str, timeout_s: float, function: Callable[[], Any]) -> Any:
    """What others' code returns; whatever it raises, and a lack of time, is about this sample."""
    try:
        with _time_limit(timeout_s):
            return function()
    except _Timeout as error:
        raise RewardError(f"the {name} took longer than {timeout_s:g} s") from error
    except (Exception, SystemExit) as error:
        raise RewardError(f"the {name} raised {type(error).__name__}: {error}") from error


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after ``seconds``: a signal, so only in the main thread and only between two bytecodes.

    A call that stays in C for longer is left to the deadline of whoever waits for this process.
    """

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise _Timeout

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
