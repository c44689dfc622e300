"""From a response to a verdict: its answer, its format, and every line of its trace.

A reward function of the user replaces the check of the answer where the configuration names one. If
it raises, returns anything but a finite number, or takes too long, the sample ends as a data
failure: a failure is never a reward of zero. Responses are judged in a process of their own
(``bi_ray.isolation``), parsing included.
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
from typing import TYPE_CHECKING, Any

from bi_ray.config.evaluation import VerifierConfig
from bi_ray.config.importing import load_object
from bi_ray.isolation.child import CallError, Fault, doing
from bi_ray.isolation.guard import Guard, Limits
from bi_ray.reasoning.check import ParsedStep, TraceReport, check_trace
from bi_ray.reasoning.graph import Graph
from bi_ray.tasks.base import ChecksAnswers, Task

if TYPE_CHECKING:
    from bi_ray.data.problems import ProblemRow

# called with the keyword arguments question, answer and response, all text; may be a coroutine
# function
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
            question=problem.question,
            graph=problem.graph,
            answer=problem.answer,
            response=response,
            truncated=truncated,
            reference=problem.reference,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgment of a response.

    Attributes:
        reward: 1 for a right answer, else 0, or the value of the user's reward function; plus the
            rewards for the format and for the trace.
        right: whether the last answer is the right one, whatever rewards it.
        format_right: whether it is exactly one chain of thought and one answer, and not truncated.
        truncated: whether it ended at the length limit; then it is wrong.
        trace_valid: whether every line of the chain of thought is right; None: there is no graph to
            check it by.
        trace_fault: what is wrong with the first bad line; None for a valid trace and without a
            graph.
        reflections: number of lines that turn back from a node, justified or not.
        analyses: number of lines that restate what they use.
        subgoals: number of lines that write the numbers out.
        first_bad_step: position of the first bad line, from 0; the number of lines where one is
            missing at the end; None for a valid trace.
        progress: share of the needed quantities that the lines before the first bad one solve
            (``check.TraceReport``).
        right_reflections: number of lines before the first bad one that turned back from a node
            that was locked, for the right reason.
        corrections: number of lines that correct a wrong value.
        verifications: number of lines that compute a known value again.
        plans: number of lines that outline what needs what.
        outcome: value of the user's reward function, 0 where the response was truncated; None:
            there is no such function.
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
        if self.outcome is None:
            return float(self.right)
        return self.outcome

    @property
    def behaviors(self) -> dict[str, int]:
        """Number of lines that show each behavior, for those that there are."""
        counts: dict[str, int] = {}
        for behavior, field_name in BEHAVIOR_FIELDS.items():
            count = getattr(self, field_name)
            if count:
                counts[behavior] = count
        return counts


# the field of a verdict that counts each behavior
BEHAVIOR_FIELDS = {
    "reflection": "reflections",
    "analysis": "analyses",
    "subgoal": "subgoals",
    "correction": "corrections",
    "verification": "verifications",
    "planning": "plans",
}


@dataclass(frozen=True, slots=True)
class DataFailure:
    """A sample without a verdict, dropped and counted.

    The fault is in its data or in the user's reward function.

    Attributes:
        reason: the reason, in one line.
        where: file and line of the user's code that raised, "" where nothing was raised.
    """

    reason: str
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.where:
            return f"{self.reason} ({self.where})"
        return self.reason


class VerdictError(RuntimeError):
    """A stage or an RL step lacks the verdicts that it needs, so it does not count as done."""


class RewardError(CallError):
    """A reward that is not a finite number."""


class Judge:
    """Judges one response after the other, in this process and without any limit.

    Args:
        task: parses the responses.
        config: the reward function, and the reward for the trace; None: the defaults.
        format_reward: added where the format is right (``RLConfig.format_reward``).

    Raises:
        ConfigError: the reward function, or the one that checks answers, cannot be loaded.
    """

    def __init__(
        self, task: Task, config: VerifierConfig | None = None, format_reward: float = 0.0
    ) -> None:
        self.task = task
        self.config = config or VerifierConfig()
        self.format_reward = format_reward
        self.reward_function: RewardFunction | None = None
        if self.config.reward_function:
            self.reward_function = load_reward_function(self.config.reward_function)
        if isinstance(task, ChecksAnswers):
            task.prepare()

    def __call__(self, item: VerificationItem) -> Verdict:
        """Judge a response to a problem whose graph is in the item."""
        steps = self.parse(item.response)
        graph = Graph.from_json(item.graph) if item.graph else None
        return self.verdict(item, graph, steps)

    def parse(self, response: str) -> list[ParsedStep]:
        """The lines of a response's chain of thought."""
        doing("check of the trace")
        return self.task.parse_trace(response)

    def verdict(
        self, item: VerificationItem, graph: Graph | None, steps: Sequence[ParsedStep]
    ) -> Verdict:
        """Judge a response (docs/method.md, "Definitions").

        Args:
            item: the response and its problem.
            graph: the problem's graph, which the trace is checked against; None: it is not checked.
            steps: the lines of the response (``parse``).
        """
        doing("check of the trace")
        report: TraceReport | None = None
        if graph is not None:
            report = check_trace(steps, graph, self.task.notation)
        shown: Counter[str] = Counter()
        for step in steps:
            shown.update(step.behaviors)
        doing("check of the format")
        format_right = not item.truncated and self.task.format_is_right(item.response)
        doing("check of the answer")
        right = not item.truncated and self._is_right(item)
        outcome = self._outcome(item)
        reward = 0.0
        if not item.truncated:
            answer_reward = float(right) if outcome is None else outcome
            reward = answer_reward + self.format_reward * format_right
            if report:
                reward += self.config.trace_reward * self._trace_share(report)
        return Verdict(
            reward=reward,
            right=right,
            format_right=format_right,
            truncated=item.truncated,
            trace_valid=report.valid if report else None,
            trace_fault=report.reason if report else None,
            reflections=shown["reflection"],
            analyses=shown["analysis"],
            subgoals=shown["subgoal"],
            first_bad_step=report.first_bad_step if report else None,
            progress=report.progress if report else None,
            right_reflections=report.right_reflections if report else 0,
            corrections=shown["correction"],
            verifications=shown["verification"],
            plans=shown["planning"],
            outcome=outcome,
        )

    def _is_right(self, item: VerificationItem) -> bool:
        if isinstance(self.task, ChecksAnswers):
            return self.task.answer_is_right(
                item.response, item.question, item.answer, item.reference
            )
        return self.task.parse_answer(item.response) == item.answer

    def _outcome(self, item: VerificationItem) -> float | None:
        """Value of the user's reward function; see ``Verdict.outcome``."""
        if self.reward_function is None:
            return None
        if item.truncated:
            return 0.0
        doing("reward function")
        return call_reward_function(self.reward_function, item)

    def _trace_share(self, report: TraceReport) -> float:
        """The share of the trace reward that a trace earns."""
        if self.config.trace_reward_of == "progress":
            return report.progress
        return report.valid


class Verifier:
    """Judges batches in a process of its own, which is replaced where a response takes too much.

    Args:
        task: parses the responses.
        config: the reward function and the limits, and the reward for the trace.
        format_reward: added where the format is right (``RLConfig.format_reward``).

    Raises:
        ConfigError: the reward function, or the one that checks answers, cannot be loaded.
        GuardError: the process does not start.
    """

    def __init__(self, task: Task, config: VerifierConfig, format_reward: float = 0.0) -> None:
        self._guard: Guard[VerificationItem, Verdict] = Guard(
            partial(Judge, task, config, format_reward),
            Limits.of(config),
            first_call_loads=config.reward_function is not None or calls_user_code(task),
        )
        self._guard.start()

    def ready(self) -> int:
        """Identifier of the process that this verifier is in."""
        return os.getpid()

    def score(self, items: Sequence[VerificationItem]) -> list[Verdict | DataFailure]:
        """A verdict or a data failure per item, in order."""
        return [_verdict_of(outcome) for outcome in self._guard.run(items)]

    def close(self) -> None:
        """End the process that judges."""
        self._guard.close()


def _verdict_of(outcome: Verdict | Fault) -> Verdict | DataFailure:
    if isinstance(outcome, Fault):
        return DataFailure(outcome.reason, outcome.where)
    return outcome


def require_verdicts(outcomes: Iterable[Verdict | DataFailure]) -> None:
    """Refuse a batch in which nothing could be judged: the fault is not in the responses then.

    A truncated response proves nothing, since it is wrong without any check. Any number of failures
    is allowed beside verdicts; statistics leave them out.

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
    if len(reasons) > 1:
        reason += f" ({count} of them, and other reasons)"
    raise VerdictError(
        f"none of {reasons.total()} responses could be judged: {reason}; "
        "fix it and run the same command again"
    )


def calls_user_code(task: Task) -> bool:
    """Whether a function of the user checks the task's answers."""
    checker = getattr(task, "checker", None)
    return checker is not None and checker.config.checker == "function"


def load_reward_function(path: str) -> RewardFunction:
    """The function at ``package.module:function`` (``importing.load_object``).

    Raises:
        ConfigError: it cannot be loaded.
    """
    function: RewardFunction = load_object(path, f"verifier.reward_function: {path}")
    return function


def call_reward_function(function: RewardFunction, item: VerificationItem) -> float:
    """The reward that ``function`` gives ``item``; a coroutine is awaited.

    Raises:
        RewardError: it is not a finite number.
        Exception: anything that the function raises.
    """
    value = function(question=item.question, answer=item.answer, response=item.response)
    if inspect.isawaitable(value):
        value = _event_loop().run_until_complete(value)
    return reward_of(value)


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop for all calls: a client that a coroutine function keeps belongs to its loop."""
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
    """The start of a value, and its type."""
    try:
        text = " ".join(f"{value!r:.80}".split())
    except Exception:  # a __repr__ of the user
        text = "a value that cannot be printed"
    return f"{text} ({type(value).__name__})"
