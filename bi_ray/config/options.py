"""Every option of a configuration with its type, default and meaning, read from the models."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from bi_ray.config.base import Config, ConfigError

_TYPES = {bool: "true or false", int: "integer", float: "number", str: "string"}
# units stand at the end of names, such as sync_timeout_s
_UNITS = {"s": "seconds", "mib": "MiB", "tokens": "tokens", "steps": "steps"}
_SAME_WITH_A_SLIP = 0.75  # similarity of two names, 1 if they are equal


@dataclass(frozen=True, slots=True)
class Option:
    """One option, or a section of options.

    Attributes:
        path: the keys that lead to it from the top of the file. ``<name>`` and ``<set>`` stand for
            any key, ``<n>`` for a position in a list.
        type: the type in words, with limits and unit, such as ``seconds > 0, or null``.
        default: as YAML has it; None: it must be given, or is a section whose options have
            defaults of their own.
        required: whether it must be given.
        meaning: its description, in one line.
        kind: the ``kind`` of its section under which it exists; empty: there is no choice.
    """

    path: tuple[str, ...]
    type: str
    default: str | None
    required: bool
    meaning: str
    kind: str = ""

    @property
    def name(self) -> str:
        """The path with dots, such as ``rl.steps``."""
        return ".".join(self.path)

    def is_below(self, keys: Sequence[str]) -> bool:
        """Whether ``keys`` lead to this option or to a section that it is in."""
        return len(keys) <= len(self.path) and all(map(_matches, self.path, keys))


class _Section(NamedTuple):
    """A section inside an option's type: the keys that lead to it, its class and its kind."""

    keys: tuple[str, ...]
    model: type[Config]
    kind: str = ""


def options_of(model: type[Config]) -> list[Option]:
    """Every option of a configuration, each section before its options."""
    return list(_walk(_Section((), model), None, ()))


def find_options(model: type[Config], prefix: str) -> list[Option]:
    """The options whose names begin with ``prefix``, such as ``rl.kl`` or ``task.sets.rl``.

    Raises:
        ConfigError: there are none; the message names the nearest option.
    """
    options = options_of(model)
    *sections, last = prefix.removesuffix("*").removesuffix(".").split(".")
    found = []
    for option in options:
        if len(option.path) <= len(sections) or not option.is_below(sections):
            continue
        key = option.path[len(sections)]
        if key.startswith(last) or _matches(key, last):
            found.append(option)
    if found:
        return found
    near = nearest_option(prefix.split("."), options)
    hint = f"; did you mean {near}?" if near else "; `bi-ray options` lists all of them"
    raise ConfigError(f"no option begins with {prefix}{hint}")


def nearest_option(keys: Sequence[str], options: Sequence[Option]) -> str | None:
    """The name most like an unknown one: of the same section if possible, else of any.

    Args:
        keys: the keys that lead to the unknown option.
        options: those to choose from.

    Returns:
        the name with the user's own keys in place of placeholders; None if nothing is similar.
    """
    *sections, last = keys
    siblings = [
        option.path[-1]
        for option in options
        if len(option.path) == len(keys) and option.is_below(sections)
    ]
    if near := difflib.get_close_matches(last, siblings, n=1, cutoff=_SAME_WITH_A_SLIP):
        return ".".join([*sections, near[0]])
    namesakes = [option.name for option in options if option.path[-1] == last]
    if namesakes:
        return difflib.get_close_matches(".".join(keys), namesakes, n=1, cutoff=0)[0]
    near = difflib.get_close_matches(".".join(keys), [option.name for option in options], n=1)
    return near[0] if near else None


def _matches(key: str, given: str) -> bool:
    return key == given or key.startswith("<")


def _walk(
    section: _Section, default: Config | None, parents: tuple[type[Config], ...]
) -> Iterator[Option]:
    """The options of a section and of those inside it.

    Args:
        section: the section; its keys lead to it from the top of the file.
        default: the default value of the whole section; None: it has none.
        parents: the classes of the sections that it is in; a recipe may hold a recipe.
    """
    if section.model in parents:
        return
    for name, field in section.model.model_fields.items():
        path = (*section.keys, name)
        value = field.get_default(call_default_factory=True, validated_data={})
        if default is not None and name in default.model_fields_set:
            value = getattr(default, name)
        yield Option(
            path,
            _type_of(field, name),
            None if field.is_required() or isinstance(value, Config) else _as_yaml(value),
            field.is_required(),
            " ".join((field.description or "").split()),
            section.kind,
        )
        for inner in _sections_in(field.annotation):
            deeper = _Section(path + inner.keys, inner.model, inner.kind or section.kind)
            inner_default = value if isinstance(value, Config) else None
            yield from _walk(deeper, inner_default, (*parents, section.model))


def _sections_in(kind: Any) -> Iterator[_Section]:
    """The sections inside a type: itself, members of a union, elements of a list or mapping."""
    if _is_section(kind):
        yield _Section((), kind)
        return
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from _sections_in(arguments[0])
    elif origin in (Union, UnionType):
        models = [member for member in arguments if _is_section(member)]
        for member in models:
            yield _Section((), member, _kind_of(member) if len(models) > 1 else "")
    elif origin is tuple:
        for inner in _sections_in(arguments[0]):
            yield inner._replace(keys=("<n>", *inner.keys))
    elif origin is dict:
        placeholder = "<set>" if get_origin(arguments[0]) is Literal else "<name>"
        for inner in _sections_in(arguments[1]):
            yield inner._replace(keys=(placeholder, *inner.keys))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Config)


def _kind_of(model: type[Config]) -> str:
    """The value of ``kind`` that chooses a section out of several."""
    return get_args(model.model_fields["kind"].annotation)[0]


def _type_of(field: FieldInfo, name: str) -> str:
    unit = _UNITS.get(name.rpartition("_")[2], "")
    return _in_words(field.annotation, field.metadata, unit)


def _in_words(kind: Any, limits: Sequence[Any], unit: str) -> str:
    """A type in words, such as ``integer >= 1 (tokens), or null``.

    Args:
        kind: the type.
        limits: what pydantic holds its values to.
        unit: of numbers; empty: they have none.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_words(arguments[0], [*limits, *arguments[1:]], unit)
    if origin in (Union, UnionType):
        return _union(arguments, limits, unit)
    if origin is Literal:
        values = ", ".join(map(str, arguments))
        return f"one of {values}" if len(arguments) > 1 else values
    if origin is tuple:
        return _tuple(arguments, limits, unit)
    if origin is dict:
        return _mapping(arguments[1], unit)
    if _is_section(kind):
        return "section"
    return _simple(kind, limits, unit)


def _union(members: Sequence[Any], limits: Sequence[Any], unit: str) -> str:
    words: list[str] = []
    for member in members:
        word = "null" if member is type(None) else _in_words(member, limits, unit)
        if word not in words:
            words.append(word)
    return ", or ".join(words)


def _tuple(arguments: Sequence[Any], limits: Sequence[Any], unit: str) -> str:
    elements = _plural(_in_words(arguments[0], [], unit))
    if arguments[-1] is not Ellipsis:
        return f"list of {len(arguments)} {elements}"
    if any(isinstance(limit, MinLen) for limit in limits):
        return f"list of one or more {elements}"
    return f"list of {elements}"


def _mapping(kind: Any, unit: str) -> str:
    if kind is Any:
        return "mapping"
    return f"mapping to {_plural(_in_words(kind, [], unit))}"


def _plural(words: str) -> str:
    """``integers >= 1`` from ``integer >= 1``."""
    noun, space, rest = words.partition(" ")
    if noun == "one":
        return f"values, each {words}"
    return f"{noun}s{space}{rest}"


def _simple(kind: Any, limits: Sequence[Any], unit: str) -> str:
    word = _TYPES.get(kind, "any value")
    if unit and kind is float:
        word = unit
    bounds = [_bound(limit, kind) for limit in _flat(limits)]
    words = f"{word} {' and '.join(filter(None, bounds))}".rstrip()
    return f"{words} ({unit})" if unit and kind is int else words


def _flat(limits: Sequence[Any]) -> Iterator[Any]:
    """The limits, with those inside a ``Field(...)`` of a nested annotation unpacked."""
    for limit in limits:
        if isinstance(limit, FieldInfo):
            yield from limit.metadata
        else:
            yield limit


def _bound(limit: Any, kind: Any) -> str:
    """``>= 1`` and the like; empty for what bounds no number."""
    match limit:
        case Gt() if kind is int:
            return f">= {limit.gt + 1}"  # type: ignore[operator]
        case Gt():
            return f"> {limit.gt}"
        case Ge():
            return f">= {limit.ge}"
        case Lt():
            return f"< {limit.lt}"
        case Le():
            return f"<= {limit.le}"
    return ""


def _as_yaml(value: object) -> str:
    plain = to_jsonable_python(value)
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=1000)
    return text.removesuffix("...\n").strip()
