"""Sets as other tools read them without glue: columns for TRL and verl, and a card for the hub.

TRL takes conversations: ``messages`` (SFT), ``prompt`` and ``completion`` (SFT with the loss on the
response alone), ``prompt`` (GRPO, whose reward functions get the further columns). verl's: its
documentation, "Prepare Data for Post-Training".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import yaml

from bi_ray.config import ConfigError
from bi_ray.data.columns import ExtraColumns
from bi_ray.data.shards import FileFormat

Format = Literal["arrow", "jsonl", "parquet", "messages", "completion", "verl"]
Row = Mapping[str, Any]
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
    """How a set is written: the files' format, their columns, and what makes a row of a problem or
    demonstration.
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
        ConfigError: ``completion`` was asked for, and there are none; or ``verl``, which would lose
            them.
    """

    def prompt(row: Row) -> list[dict[str, str]]:
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [*system, {"role": "user", "content": row["question"]}]

    def response(row: Row) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": row["response"]}]

    if name == "completion":
        if not demonstrations:
            raise ConfigError(
                "format completion needs responses; problems alone have none: use messages"
            )
        return Layout(
            "parquet",
            _COMPLETION_SCHEMA,
            lambda row, index: {
                "id": row["id"],
                "prompt": prompt(row),
                "completion": response(row),
            },
        )
    if name == "messages" and demonstrations:
        return Layout(
            "parquet",
            _MESSAGES_SCHEMA,
            lambda row, index: {"id": row["id"], "messages": prompt(row) + response(row)},
        )
    if name == "messages":
        return Layout(
            "parquet",
            _PROMPT_SCHEMA,
            lambda row, index: {"id": row["id"], "prompt": prompt(row), "answer": row["answer"]},
        )
    if name == "verl":
        if demonstrations:
            raise ConfigError(
                "format verl is for RL and has no responses: use messages, or bi-ray data for verl"
            )
        return Layout(
            "parquet",
            _VERL_SCHEMA,
            lambda row, index: _verl_row(row, index, prompt(row), source, split),
        )
    return Layout(
        name, DEMONSTRATION_SCHEMA if demonstrations else PROBLEM_SCHEMA, lambda row, index: row
    )


def with_columns(layout: Layout, extra: ExtraColumns) -> Layout:
    """The same with a user's further columns behind its own."""
    return layout._replace(
        schema=pa.schema([*layout.schema, *extra.schema]),
        convert=lambda row, index: {**layout.convert(row, index), **extra.of(row)},
    )


def _verl_row(row: Row, index: int, prompt: list[dict[str, str]], source: str, split: str) -> Row:
    extra = {
        "split": split,
        "index": index,
        "id": row["id"],
        "question": row["question"],
        "graph": row["graph"],
    }
    return {
        "data_source": source,
        "prompt": prompt,
        "ability": "reasoning",
        "reward_model": {"style": "rule", "ground_truth": row["answer"]},
        "extra_info": extra,
    }


def split_of(set_name: str) -> str:
    """What the hub calls a set."""
    return {
        "val": "validation",
        "val_ood": "validation",
        "test_id": "test",
        "test_ood": "test",
    }.get(set_name, "train")


@dataclass(slots=True)
class Counts:
    """What is counted over the rows of a set."""

    rows: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    behaviors: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        """Count a problem or a demonstration."""
        self.count(row["answer"])
        self.behaviors.update(span["behavior"] for span in row.get("spans", ()))

    def count(self, answer: str) -> None:
        """Count a row by its answer."""
        self.rows += 1
        self.answers[answer] += 1

    def summary(self) -> dict[str, Any]:
        """How often the answer is zero, what the best constant answer would score, behaviors per
        row.
        """
        constant, times = self.answers.most_common(1)[0] if self.answers else ("", 0)
        rows = max(1, self.rows)
        found: dict[str, Any] = {
            "problems": self.rows,
            "zero_answer_share": self.answers["0"] / rows,
            "best_constant_answer": constant,
            "best_constant_accuracy": times / rows,
        }
        if self.behaviors:
            found["behaviors_per_row"] = {
                name: n / rows for name, n in sorted(self.behaviors.items())
            }
        return found


def write_card(directory: Path, layout: Layout, manifest: Mapping[str, Any]) -> None:
    """A README.md as the hub reads it: YAML header, then what the set is, how it was made and what
    was counted.

    Args:
        directory: of the set.
        layout: of the set.
        manifest: ``Counts.summary()`` with ``name``, ``split``, ``code_version`` and ``made_from``
            (plain JSON data).
    """
    rows = manifest["problems"]
    header = {
        "pretty_name": manifest["name"],
        "language": ["en"],
        "task_categories": ["text-generation"],
        "tags": ["reasoning", "reinforcement-learning", "bi_ray"],
        "size_categories": [_size(rows)],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": manifest["split"], "path": f"data-*.{layout.file_format}"}
                ],
            }
        ],
    }
    counted = {
        "rows": f"{rows:,}",
        "best constant answer": f"{manifest['best_constant_answer']!r}, right in "
        f"{manifest['best_constant_accuracy']:.1%} of the rows",
        "answer 0": f"{manifest['zero_answer_share']:.1%} of the rows",
    }
    counted |= {
        f"{name} per row": f"{n:.2f}" for name, n in manifest.get("behaviors_per_row", {}).items()
    }
    counted |= {"rejected rows": f"{manifest['rejected']:,}"} if "rejected" in manifest else {}
    table = "\n".join(f"| {name} | {value} |" for name, value in counted.items())
    columns = ", ".join(f"`{name}`" for name in layout.schema.names)
    made = yaml.safe_dump(manifest["made_from"], sort_keys=False)
    proof = (
        "Every response was recomputed line by line before it was written, and every reflection in it is proven to "
        "turn back from a quantity that could not be solved yet.\n\n"
        if "recipe" in manifest["made_from"]
        else ""
    )
    if proof and "spans" in layout.schema.names:
        proof = proof.rstrip() + " `spans` says which characters a behavior wrote.\n\n"
    (directory / CARD).write_text(
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {manifest['name']}\n\n"
        f"Made by `bi_ray` {manifest['code_version']} (behavior injection, arXiv:2505.18917). Columns: {columns}.\n\n"
        f"{proof}| | |\n|---|---|\n{table}\n\n## Made from\n\n```yaml\n{made}```\n",
        encoding="utf-8",
    )


def _size(rows: int) -> str:
    """The hub's name of a size."""
    for limit, name in (
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
    ):
        if rows < limit:
            return name
    return "1M<n<10M"
