"""Sets as other tools read them without glue: columns for TRL and verl, a card for the hub.

TRL takes conversations: ``messages`` (SFT), ``prompt`` and ``completion`` (SFT with the loss on the
response alone), ``prompt`` (GRPO, whose reward functions get the further columns). The columns of
verl are those of its documentation, "Prepare Data for Post-Training".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired

import pyarrow as pa
import yaml
from typing_extensions import TypedDict

from bi_ray.config.base import ConfigError
from bi_ray.data.columns import ExtraColumns
from bi_ray.data.shards import FileFormat

Format = Literal["arrow", "jsonl", "parquet", "messages", "completion", "verl"]
Row = Mapping[str, Any]  # a problem, a demonstration, or what a file gets of it
Manifest = dict[str, Any]  # JSON of a set's manifest.json
Message = dict[str, str]  # of a conversation: role and content
CARD = "README.md"

_TEXT = pa.string()
_MESSAGES = pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))
SPANS = pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64()), ("behavior", _TEXT)]))
PROBLEM_SCHEMA = pa.schema(
    {"id": _TEXT, "question": _TEXT, "answer": _TEXT, "graph": _TEXT, "hash": _TEXT}
)
DEMONSTRATION_SCHEMA = pa.schema(
    {
        "id": _TEXT,
        "question": _TEXT,
        "answer": _TEXT,
        "response": _TEXT,
        "spans": SPANS,
        "graph": _TEXT,
    }
)
_PROMPT_SCHEMA = pa.schema({"id": _TEXT, "prompt": _MESSAGES, "answer": _TEXT})
_MESSAGES_SCHEMA = pa.schema({"id": _TEXT, "messages": _MESSAGES})
_COMPLETION_SCHEMA = pa.schema({"id": _TEXT, "prompt": _MESSAGES, "completion": _MESSAGES})
_EXTRA = [
    ("split", _TEXT),
    ("index", pa.int64()),
    ("id", _TEXT),
    ("question", _TEXT),
    ("graph", _TEXT),
]
_VERL_SCHEMA = pa.schema(
    {
        "data_source": _TEXT,
        "prompt": _MESSAGES,
        "ability": _TEXT,
        "reward_model": pa.struct([("style", _TEXT), ("ground_truth", _TEXT)]),
        "extra_info": pa.struct(_EXTRA),
    }
)


class Layout(NamedTuple):
    """How a set is written.

    Attributes:
        file_format: of the files.
        schema: their columns.
        convert: makes a row of the files from a problem or demonstration and its number.
    """

    file_format: FileFormat
    schema: pa.Schema
    convert: Callable[[Row, int], Row]


def layout_of(
    name: Format, system_prompt: str, source: str, split: str, demonstrations: bool
) -> Layout:
    """The layout of an export.

    Args:
        name: arrow, jsonl and parquet keep this project's own columns.
        system_prompt: the first message of every conversation; none where it is "".
        source: what verl looks a reward function up by (``data_source``).
        split: train, validation or test.
        demonstrations: whether the rows have responses.

    Raises:
        ConfigError: ``completion`` was asked for, and there are no responses; or ``verl``, which
            would lose them.
    """
    conversations = _Conversations(system_prompt, source, split)
    if name == "completion":
        if not demonstrations:
            raise ConfigError(
                "format completion needs responses; problems alone have none: use messages"
            )
        return Layout("parquet", _COMPLETION_SCHEMA, conversations.with_completion)
    if name == "messages":
        if demonstrations:
            return Layout("parquet", _MESSAGES_SCHEMA, conversations.whole)
        return Layout("parquet", _PROMPT_SCHEMA, conversations.with_answer)
    if name == "verl":
        if demonstrations:
            raise ConfigError(
                "format verl is for RL and has no responses: use messages, or bi-ray data for verl"
            )
        return Layout("parquet", _VERL_SCHEMA, conversations.of_verl)
    schema = DEMONSTRATION_SCHEMA if demonstrations else PROBLEM_SCHEMA
    return Layout(name, schema, lambda row, index: row)


@dataclass(frozen=True, slots=True)
class _Conversations:
    """Makes conversations of rows; the attributes are arguments of ``layout_of``."""

    system_prompt: str
    source: str
    split: str

    def with_completion(self, row: Row, index: int) -> Row:
        return {"id": row["id"], "prompt": self._prompt(row), "completion": _response(row)}

    def whole(self, row: Row, index: int) -> Row:
        return {"id": row["id"], "messages": self._prompt(row) + _response(row)}

    def with_answer(self, row: Row, index: int) -> Row:
        return {"id": row["id"], "prompt": self._prompt(row), "answer": row["answer"]}

    def of_verl(self, row: Row, index: int) -> Row:
        extra = {
            "split": self.split,
            "index": index,
            "id": row["id"],
            "question": row["question"],
            "graph": row["graph"],
        }
        return {
            "data_source": self.source,
            "prompt": self._prompt(row),
            "ability": "reasoning",
            "reward_model": {"style": "rule", "ground_truth": row["answer"]},
            "extra_info": extra,
        }

    def _prompt(self, row: Row) -> list[Message]:
        question = {"role": "user", "content": row["question"]}
        if not self.system_prompt:
            return [question]
        return [{"role": "system", "content": self.system_prompt}, question]


def _response(row: Row) -> list[Message]:
    return [{"role": "assistant", "content": row["response"]}]


def with_columns(layout: Layout, extra: ExtraColumns) -> Layout:
    """The layout with a user's extra columns behind its own."""
    return layout._replace(
        schema=pa.schema([*layout.schema, *extra.schema]),
        convert=lambda row, index: {**layout.convert(row, index), **extra.of(row)},
    )


def split_of(set_name: str) -> str:
    """The hub's name for a set: train, validation or test."""
    splits = {"val": "validation", "val_ood": "validation", "test_id": "test", "test_ood": "test"}
    return splits.get(set_name, "train")


class CountsSummary(TypedDict):
    """Counts over the rows of a set, as its manifest has them.

    Attributes:
        problems: number of rows.
        zero_answer_share: share of the rows with the answer 0.
        best_constant_answer: the most frequent answer.
        best_constant_accuracy: its share: what always giving that answer scores.
        behaviors_per_row: mean number of each injected behavior, where there are any.
    """

    problems: int
    zero_answer_share: float
    best_constant_answer: str
    best_constant_accuracy: float
    behaviors_per_row: NotRequired[dict[str, float]]


@dataclass(slots=True)
class Counts:
    """Counts over the rows of a set.

    Attributes:
        rows: number of rows.
        answers: rows by their answer.
        behaviors: injected behaviors in all rows, by name.
    """

    rows: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    behaviors: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        """Count a problem or a demonstration."""
        self.add_answer(row["answer"])
        self.behaviors.update(span["behavior"] for span in row.get("spans", ()))

    def add_answer(self, answer: str) -> None:
        """Count a row by its answer alone."""
        self.rows += 1
        self.answers[answer] += 1

    def summary(self) -> CountsSummary:
        """The counts as shares and means."""
        answer, times = "", 0
        if self.answers:
            answer, times = self.answers.most_common(1)[0]
        rows = max(1, self.rows)
        summary = CountsSummary(
            problems=self.rows,
            zero_answer_share=self.answers["0"] / rows,
            best_constant_answer=answer,
            best_constant_accuracy=times / rows,
        )
        if self.behaviors:
            counted = sorted(self.behaviors.items())
            summary["behaviors_per_row"] = {name: count / rows for name, count in counted}
        return summary


def write_card(directory: Path, layout: Layout, manifest: Mapping[str, Any]) -> None:
    """Write a README.md as the hub reads it.

    A YAML header, then what the set is, how it was made and what was counted.

    Args:
        directory: of the set.
        layout: of the set.
        manifest: ``Counts.summary()`` with ``name``, ``split``, ``code_version`` and ``made_from``
            (plain JSON data).
    """
    header = yaml.safe_dump(_card_header(layout, manifest), sort_keys=False)
    columns = ", ".join(f"`{name}`" for name in layout.schema.names)
    table = "\n".join(f"| {name} | {value} |" for name, value in _card_counts(manifest).items())
    made = yaml.safe_dump(manifest["made_from"], sort_keys=False)
    (directory / CARD).write_text(
        f"---\n{header}---\n\n# {manifest['name']}\n\n"
        f"Made by `bi_ray` {manifest['code_version']} (behavior injection, arXiv:2505.18917). "
        f"Columns: {columns}.\n\n"
        f"{_proof(layout, manifest)}| | |\n|---|---|\n{table}\n\n"
        f"## Made from\n\n```yaml\n{made}```\n",
        encoding="utf-8",
    )


def _card_header(layout: Layout, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    files = {"split": manifest["split"], "path": f"data-*.{layout.file_format}"}
    return {
        "pretty_name": manifest["name"],
        "language": ["en"],
        "task_categories": ["text-generation"],
        "tags": ["reasoning", "reinforcement-learning", "bi_ray"],
        "size_categories": [_size(manifest["problems"])],
        "configs": [{"config_name": "default", "data_files": [files]}],
    }


def _card_counts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The rows of the card's table."""
    constant = manifest["best_constant_answer"]
    counts = {
        "rows": f"{manifest['problems']:,}",
        "best constant answer": f"{constant!r}, right in "
        f"{manifest['best_constant_accuracy']:.1%} of the rows",
        "answer 0": f"{manifest['zero_answer_share']:.1%} of the rows",
    }
    for name, mean in manifest.get("behaviors_per_row", {}).items():
        counts[f"{name} per row"] = f"{mean:.2f}"
    if "rejected" in manifest:
        counts["rejected rows"] = f"{manifest['rejected']:,}"
    return counts


def _proof(layout: Layout, manifest: Mapping[str, Any]) -> str:
    """A paragraph about what was verified of demonstrations; "" of problems."""
    if "recipe" not in manifest["made_from"]:
        return ""
    proof = (
        "Every response was recomputed line by line before it was written, and every reflection in "
        "it is proven to turn back from a quantity that could not be solved yet."
    )
    if "spans" in layout.schema.names:
        proof += " `spans` says which characters a behavior wrote."
    return f"{proof}\n\n"


def _size(rows: int) -> str:
    """The hub's name of a size."""
    limits = {
        1_000: "n<1K",
        10_000: "1K<n<10K",
        100_000: "10K<n<100K",
        1_000_000: "100K<n<1M",
    }
    for limit, name in limits.items():
        if rows < limit:
            return name
    return "1M<n<10M"
