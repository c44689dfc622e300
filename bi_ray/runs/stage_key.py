"""Stage keys: what a stage's result depends on, and in what two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python


@dataclass(frozen=True)
class StageKey:
    """What a stage's result depends on, as plain JSON data, and the hash of it.

    Attributes:
        config: the parts of the configuration that the stage reads, by name.
        inputs: the digest of every stage that this one reads, by stage.
        digest: hash of the canonical JSON of both (64 bits, hexadecimal).
    """

    config: dict[str, Any]
    inputs: dict[str, str]
    digest: str


def key_of(config: Mapping[str, object], inputs: Mapping[str, str]) -> StageKey:
    """The key of a stage.

    Args:
        config: parts of the configuration, sections or plain values, such as ``{"sft": run.sft,
            "seed": 3}``.
        inputs: digests of the stages that this one reads, such as ``{"data": data_key.digest}``.

    Raises:
        ValueError: a number is not finite.
    """
    parts = json.loads(json.dumps(to_jsonable_python(dict(config)), allow_nan=False))
    text = json.dumps([parts, dict(inputs)], sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return StageKey(parts, dict(inputs), digest)


def differences(old: object, new: object) -> list[str]:
    """What differs between two pieces of JSON data, a line per leaf: ``sft.epochs: 5 -> 10``."""
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    _collect_leaves(old, "", before)
    _collect_leaves(new, "", after)
    lines = []
    for name in dict.fromkeys([*before, *after]):
        left = before.get(name, "(absent)")
        right = after.get(name, "(absent)")
        if left != right:
            lines.append(f"{name}: {left} -> {right}")
    return lines


def _collect_leaves(value: object, name: str, leaves: dict[str, str]) -> None:
    """Add every scalar, empty container and list of scalars to ``leaves``, by its dotted name."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            _collect_leaves(child, f"{name}.{key}" if name else str(key), leaves)
    elif isinstance(value, list) and any(isinstance(child, (dict, list)) for child in value):
        for index, child in enumerate(value):
            _collect_leaves(child, f"{name}[{index}]", leaves)
    else:
        leaves[name] = json.dumps(value)
