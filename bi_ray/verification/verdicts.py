"""From a response to a verdict: exact answer, format, truncation, and the check of every line of
the trace.

A reward function of the user takes the place of the exact match where the configuration names one.
When it raises, returns anything but a finite number, or takes too long, the sample ends as a data
failure: a failure is never a reward of zero. A response is judged in a process of its own
(``bi_ray.isolation.guard``), reading, trace and format included.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache, partial
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from bi_ray.config import VerifierConfig
from bi_ray.config.importing import load_object
from bi_ray.isolation.guard import CallError, Fault, Guard, Limits, doing
from bi_ray.reasoning.check import check_trace
from bi_ray.reasoning.graph import Graph
from bi_ray.tasks.base import ChecksAnswers, Task

if TYPE_CHECKING:
    from bi_ray.data.problems import ProblemRow

# Called with the keyword arguments question, answer and response, all text; may be a coroutine
# function.
RewardFunction = Callable[..., Any]


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
        return cls(
            problem.question, problem.graph, problem.answer, response, truncated, problem.reference
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a response is worth.

    Attributes:
        reward: 1 for a right answer, else 0, or what the user's reward function returned; plus the
            rewards for the format and for the trace.
        right: whether the last answer is the right one, whatever rewards it.
        format_right: whether it is exactly one chain of thought and one answer, and not truncated.
        truncated: whether it ended at the length limit; then it is wrong.
        trace_valid: whether every line of the chain of thought is right, None where there is no
            graph to check it by.
        trace_fault: what is wrong with the first bad line, None for a valid trace and without a
            graph.
        reflections: lines that turn back from a node, justified or not.
        analyses: lines that restate what they use.
        subgoals: lines that write the numbers out.
        first_bad_step: place of the first bad line, from 0; the number of lines where one is
            lacking at the end; None for a valid trace.
        progress: share of the needed quantities that the lines before it solve
            (``check.TraceReport``).
        right_reflections: lines before it that turned back from a node that was locked, for the
            right reason.
        corrections: lines that mend a wrong value.
        verifications: lines that compute something known again.
        plans: lines that say what needs what.
        outcome: what the user's reward function returned, 0 where the response was truncated; None:
            without one.
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


BEHAVIOR_FIELDS = {  # of a verdict, by the behavior that they count
    "reflection": "reflections",
    "analysis": "analyses",
    "subgoal": "subgoals",
    "correction": "corrections",
    "verification": "verifications",
    "planning": "plans",
}


@dataclass(frozen=True, slots=True)
class DataFailure:
    """A sample without a verdict, because of its data or of the user's reward function: dropped and
    counted.

    Attributes:
        reason: one line.
        where: file and line of the user's code that raised, "" where nothing was raised.
    """

    reason: str
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.reason} ({self.where})" if self.where else self.reason


class VerdictError(RuntimeError):
    """A stage or an RL step that lacks the verdicts it needs, so it does not count as done; the
    message says why.
    """


class RewardError(CallError):
    """A reward that is not one finite number."""


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
    """Judge one response (section 8 of docs/method.md), in this process and without any limit.

    Args:
        task: reads the response.
        problem_graph: what the trace is checked against; None: it is not.
        answer: the right answer, as text.
        response_text: the response, without its end token.
        truncated: whether it ended at the length limit; then its reward is 0 whatever it says.
        reward_function: gives the reward of this response in place of the exact match.
        format_reward: added where the format is right.
        is_right: says whether the answer is right, in place of an exact match.
        trace_reward: added times the trace's progress, or where it is valid: a reward for the
            process.
        trace_reward_of: which of the two.
    """
    doing("check of the trace")
    steps = task.parse_trace(response_text)
    trace = check_trace(steps, problem_graph, task.notation) if problem_graph is not None else None
    shown = Counter(behavior for step in steps for behavior in step.behaviors)
    doing("check of the format")
    format_right = not truncated and task.format_is_right(response_text)
    doing("check of the answer")
    right = not truncated and (
        is_right() if is_right else task.parse_answer(response_text) == answer
    )
    outcome = None
    if reward_function:
        doing("reward function")
        outcome = 0.0 if truncated else reward_function()
    reward = 0.0
    if not truncated:
        reward = (float(right) if outcome is None else outcome) + format_reward * format_right
        if trace:
            reward += trace_reward * (
                trace.progress if trace_reward_of == "progress" else trace.valid
            )
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
    """Scores batches in a process of its own, which is ended and replaced where a response takes
    too much of it.

    Args:
        task: reads the responses.
        config: the reward function and the limits, and the reward for the trace.
        format_reward: added where the format is right (``RLConfig.format_reward``).

    Raises:
        ConfigError: the reward function, or that which checks answers, cannot be loaded.
        GuardError: the process does not start.
    """

    def __init__(self, task: Task, config: VerifierConfig, format_reward: float = 0.0) -> None:
        self._guard: Guard[VerificationItem, Verdict] = Guard(
            partial(_Scorer, task, config, format_reward),
            Limits.of(config),
            first_call_loads=config.reward_function is not None or calls_user_code(task),
        )
        self._guard.start()

    def ready(self) -> int:
        """Identifier of this process."""
        return os.getpid()

    def score(self, items: Sequence[VerificationItem]) -> list[Verdict | DataFailure]:
        """A verdict or a data failure per item, in order."""
        return [_verdict_of(outcome) for outcome in self._guard.run(items)]

    def close(self) -> None:
        """End the process that scores."""
        self._guard.close()


def _verdict_of(outcome: Verdict | Fault) -> Verdict | DataFailure:
    return DataFailure(outcome.reason, outcome.where) if isinstance(outcome, Fault) else outcome


def require_verdicts(outcomes: Iterable[Verdict | DataFailure]) -> None:
    """Refuse a batch in which nothing could be judged: then the fault is not in the responses.

    A truncated response proves nothing, since it is wrong without any check. Failures beside
    verdicts are allowed, however many they are; whoever counts them leaves them out.

    Args:
        outcomes: of all responses of an evaluation or an RL step.

    Raises:
        VerdictError: all of them, but for truncated ones, are failures.
    """
    reasons: Counter[str] = Counter()
    judged = 0
    for outcome in outcomes:
        if isinstance(outcome, DataFailure):
            reasons[str(outcome)] += 1
        elif not outcome.truncated:
            judged += 1
    if judged or not reasons:
        return
    reason, count = reasons.most_common(1)[0]
    share = "" if len(reasons) == 1 else f" ({count} of them, and other reasons)"
    advice = "fix it and run the same command again"
    raise VerdictError(
        f"none of {reasons.total()} responses could be judged: {reason}{share}; {advice}"
    )


def calls_user_code(task: Task) -> bool:
    """Whether a function of the user checks the task's answers."""
    checker = getattr(task, "checker", None)
    return checker is not None and checker.config.checker == "function"


class _Scorer:
    """Judges one response after the other; built and called in the guarded process."""

    def __init__(self, task: Task, config: VerifierConfig, format_reward: float) -> None:
        self.task = task
        self.config = config
        self.format_reward = format_reward
        self.reward_function = (
            load_reward_function(config.reward_function) if config.reward_function else None
        )
        if isinstance(task, ChecksAnswers):
            task.prepare()

    def __call__(self, item: VerificationItem) -> Verdict:
        task = self.task
        reward = is_right = None
        if self.reward_function:
            reward = partial(call_reward_function, self.reward_function, item)
        if isinstance(task, ChecksAnswers):
            is_right = partial(
                task.answer_is_right, item.response, item.question, item.answer, item.reference
            )
        return verify(
            task,
            Graph.from_json(item.graph) if item.graph else None,
            item.answer,
            item.response,
            item.truncated,
            reward,
            self.format_reward,
            is_right,
            self.config.trace_reward,
            self.config.trace_reward_of,
        )


def load_reward_function(path: str) -> RewardFunction:
    """The function at ``package.module:function`` (``importing.load_object``).

    Raises:
        ConfigError: it cannot be loaded.
    """
    function: RewardFunction = load_object(path, f"verifier.reward_function: {path}")
    return function


def call_reward_function(function: RewardFunction, item: VerificationItem) -> float:
    """The reward that ``function`` gives ``item``; what a coroutine function returns is awaited.

    Raises:
        RewardError: it is not one finite number.
        Exception: whatever the function raises.
    """
    value = function(question=item.question, answer=item.answer, response=item.response)
    if inspect.isawaitable(value):
        value = _event_loop().run_until_complete(value)
    return reward_of(value)


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One for all calls: a client that a coroutine function keeps belongs to the loop that it was
    made in.
    """
    return asyncio.new_event_loop()


def reward_of(value: Any) -> float:
    """A reward as a plain number: any number, or an array or tensor without dimensions.

    Raises:
        RewardError: it is something else, or not finite.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # of numpy, torch or jax
    if not isinstance(value, Real | Decimal):
        raise RewardError(f"the reward function returned {_shown(value)}, which is not a number")
    try:
        number = float(value)
    except (OverflowError, ValueError):  # an integer beyond floats; Decimal("sNaN")
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(
            f"the reward function returned {_shown(value)}, which is not a finite number"
        )
    return number


def _shown(value: Any) -> str:
    """The start of a value, and of what type it is."""
    try:
        text = " ".join(f"{value!r:.80}".split())
    except Exception:  # a __repr__ of the user
        text = "a value that cannot be printed"
    return f"{text} ({type(value).__name__})"
