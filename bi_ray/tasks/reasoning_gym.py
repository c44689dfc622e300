"""Tasks of reasoning-gym (an optional dependency), judged by its own scorers.

They serve as RL queries and as test problems. Item i of a set is drawn from its own random stream
until the hash of its question falls in the set. Its seed in reasoning-gym is its ``reference``: to
check an answer the entry is made again, since many scorers need more of it than its answer.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, cast

from bi_ray.answers.extraction import find_readings
from bi_ray.config.base import ConfigError, SetName
from bi_ray.config.tasks import ReasoningGymConfig
from bi_ray.rows.cells import RowError
from bi_ray.tasks.base import Problem, in_split, item_stream, text_hash
from bi_ray.tasks.text import TextTask

_MAX_DRAWS = 2000  # a set owns at least 5 % of the hashes
_CACHED = 4096  # entries of a step, whose samples are judged together
_MOST_DIGITS = 10  # of a problem's index
_ANY = "(any that the scorer takes)"


class ReasoningGymTask(TextTask):
    """Problems of one task of reasoning-gym.

    Args:
        config: the task's name and options.
        seed: the data seed.

    Raises:
        ConfigError: reasoning-gym is not installed, has no such task, or refuses the options.
    """

    def __init__(self, config: ReasoningGymConfig, seed: int) -> None:
        super().__init__(config.extract, config.system_prompt)
        self.config = config
        self.seed = seed
        for name, settings in config.sets.items():
            try:
                _make(config.task, _options(config.options | settings.options), seed=0)
            except ImportError as error:
                raise ConfigError(
                    f"task.kind reasoning_gym: {error}; "
                    "install the extra: pip install 'bi-ray[gym]'"
                ) from error
            except Exception as error:  # anything that its configuration class raises
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ConfigError(
                    f"task.task {config.task!r}, options of set {name}: {reason}"
                ) from error

    def problem(self, split: SetName, index: int) -> Problem:
        """Problem ``index`` of a set.

        Raises:
            ConfigError: the task makes no problem of this set.
        """
        rng = item_stream(self.seed, split, index)
        settings = self.config.sets.get(split)
        changes = settings.options if settings else {}
        options = _options(self.config.options | changes)
        for _ in range(_MAX_DRAWS):
            seed = rng.getrandbits(31)
            entry = _entry(self.config.task, options, seed)
            if in_split(text_hash(entry["question"]), split):
                answer = _ANY if entry["answer"] is None else str(entry["answer"])
                reference = json.dumps({"seed": seed, "options": options})
                return Problem(
                    f"{split}-{index}", entry["question"], given_answer=answer, reference=reference
                )
        raise ConfigError(
            f"task.task {self.config.task!r} makes no problem of set {split!r} in {_MAX_DRAWS} "
            "draws: it has too few different ones; give it options that have more"
        )

    def recall(self, name: str, question: str, answer: str | None) -> Problem:
        """The problem of a row, made again by its id; the row's question has to be the same.

        Raises:
            RowError: there is no such problem; a question and its answer are not enough for most
                scorers.
        """
        split, _, index = name.rpartition("-")
        is_index = index.isascii() and index.isdigit() and len(index) < _MOST_DIGITS
        if is_index and split in self.config.sets:
            problem = self.problem(cast(SetName, split), int(index))
            if problem.question == question:
                return problem
        raise RowError(
            f"no problem of this task: {name!r} is not where `bi-ray data` makes this question; "
            "leave id and question as they were, and give the configuration with its seeds.data"
        )

    def prepare(self) -> None:
        """Import reasoning-gym and read its files."""
        for settings in self.config.sets.values():
            _takes_seeds(self.config.task, _options(self.config.options | settings.options))

    def answer_is_right(self, response: str, question: str, answer: str, reference: str) -> bool:
        """Whether reasoning-gym's scorer gives one reading of the answer (``find_readings``) its
        full score.
        """
        source = json.loads(reference)
        entry = _entry(self.config.task, source["options"], source["seed"])
        score = _shared(self.config.task, source["options"]).score_answer
        fault: Exception | None = None
        for reading in find_readings(response, self.extract):
            try:
                if float(score(reading, entry)) >= 1.0:
                    return True
                fault = None
            # a scorer may raise for "The final answer is 3", since it is not a number
            except Exception as error:
                fault = error
        if fault is not None:
            raise fault
        return False


def _options(options: dict[str, Any]) -> str:
    return json.dumps(options, sort_keys=True)


def _make(name: str, options: str, seed: int) -> Any:
    """The task's data set, of one entry."""
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=seed, size=1, **json.loads(options))


@lru_cache(maxsize=16)
def _shared(name: str, options: str) -> Any:
    """The one data set of these options that scores all their entries."""
    return _make(name, options, seed=0)


@lru_cache(maxsize=16)
def _takes_seeds(name: str, options: str) -> bool:
    """Whether the shared data set makes the same entry for a seed as a new data set does.

    Nearly all do, which saves most of the time: that of loading word lists. A few draw their
    entries when they are made.
    """
    shared = _shared(name, options)
    for seed in (1, 2):
        shared.seed = seed
        if shared[0]["question"] != _make(name, options, seed)[0]["question"]:
            return False
    return True


@lru_cache(maxsize=_CACHED)
def _entry(name: str, options: str, seed: int) -> dict[str, Any]:
    if not _takes_seeds(name, options):
        return _make(name, options, seed)[0]
    shared = _shared(name, options)
    shared.seed = seed
    return shared[0]
