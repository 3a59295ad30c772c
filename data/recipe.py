"""Reading a recipe: YAML and --set into checked settings, with errors that a person can act on."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

# Before pydantic is imported, which else looks through all that is installed for plugins.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import yaml
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer
from pydantic_core import ErrorDetails

RECIPE_FILE = "recipe file"
COMMAND_LINE = "--set"


class UserError(Exception):
    """A message for the person at the keyboard: what is wrong, and the remedy. Commands exit with 2."""


class Section(BaseModel):
    """Base of every part of a recipe: unknown keys are refused, values do not change."""

    # Deferred: only what is validated is compiled, most sections as a part of the recipe (16 validators instead of 42).
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Alternatives(Section):
    """Keys of which only some apply: those that do not are left out when the settings are written down."""

    @model_serializer(mode="wrap")
    def _without_the_rest(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class RawRecipe:
    """What was written, before it is checked. `origins` and `lines` are keyed ("corpora.news.path")."""

    path: Path
    values: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)  # leaf -> "recipe file" | "--set"
    lines: dict[str, int] = field(default_factory=dict)  # key of the file -> line, counted from 1


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `no` is Norwegian, not false, and 1e-4 is a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # PyYAML's own protocol


_FLOAT = r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan"
for _tag, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RawRecipe:
    """The recipe at `path`, each override "a.b=c" applied (c is YAML). UserError if it can not be read."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe{_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the recipe can not be read: {error}") from None
    lines: dict[str, int] = {}
    values = _parse_yaml(text, str(path), lines)
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, this file holds {_shown(values)}")
    origins = {key: RECIPE_FILE for key in _leaves(values)}
    for override in overrides:
        _apply_override(override, values, origins)
    return RawRecipe(path, values, origins, lines)


def parse_recipe(raw: RawRecipe, cls: type[S], *, other_sections: bool = False) -> S:
    """The settings of class `cls`; raises UserError with all errors at once.

    other_sections: the recipe has top-level keys that `cls` does not know and that belong to somebody else.
    They are left alone, except those that look like a misspelt key of `cls`.
    """
    values = raw.values
    if other_sections:
        known = list(cls.model_fields)
        values = {key: value for key, value in values.items() if key in known or _nearest(key, known, 0.8)}
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        messages = _messages(error, raw, cls)
        count = "one error" if len(messages) == 1 else f"{len(messages)} errors"
        raise UserError("\n  ".join([f"{raw.path}: {count} in the recipe", *messages])) from None


def resolved_with_origins(config: BaseModel, raw: RawRecipe) -> str:
    """The whole recipe as YAML that reads back as `config`; comments say where each value came from."""
    rows = list(_yaml_rows(config.model_dump(mode="json"), "", "", raw.origins))
    width = min(max((len(text) for text, origin in rows if origin), default=0), 70)
    return "".join(f"{text.ljust(width)}  # {origin}\n" if origin else f"{text}\n" for text, origin in rows)


# ---- reading -----------------------------------------------------------------------------------------------


def _parse_yaml(text: str, source: str, lines: dict[str, int] | None = None) -> Any:
    """Plain values of a YAML text; fills `lines` with the line of every key."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _plain(loader, node, "", source, {} if lines is None else lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{source}{where}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid YAML: {error}") from None


def _plain(loader: _Loader, node: yaml.Node, path: str, source: str, lines: dict[str, int]) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, _join(path, i), source, lines) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        line = key_node.start_mark.line + 1
        if key in values:
            raise UserError(f"{source}:{line}: the key {_join(path, key)} is given a second time; remove one")
        lines[_join(path, key)] = line
        values[key] = _plain(loader, value_node, _join(path, key), source, lines)
    return values


def _apply_override(override: str, values: dict[str, Any], origins: dict[str, str]) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    steps = key.split(".")
    if not equals or not all(steps):
        raise UserError(f"--set {override}: write it as --set section.key=value")
    here: Any = values
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(here, list):
            if not step.isdecimal() or int(step) >= len(here):
                holder = f"{_join(*steps[:depth])} has items 0 to {len(here) - 1}"
                raise UserError(f"--set {override}: {holder}, not {step}")
            slot: Any = int(step)
        elif isinstance(here, dict):
            slot = step
        else:
            holder = f"{_join(*steps[:depth])} holds {_shown(here)}"
            raise UserError(f"--set {override}: {holder}, it has no key {step}")
        if last:
            here[slot] = _parse_yaml(text, f"'--set {override}'")
        elif isinstance(here, dict) and here.get(slot) is None:
            here[slot] = {}
        here = here[slot]
    for old in [leaf for leaf in origins if leaf == key or leaf.startswith(key + ".")]:
        del origins[old]
    origins.update({_join(key, leaf) if leaf else key: COMMAND_LINE for leaf in _leaves(here)})


def _leaves(value: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of everything that is not a mapping, nor a list that holds mappings."""
    if isinstance(value, dict) and value:
        items: Any = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    else:
        yield path
        return
    for key, item in items:
        yield from _leaves(item, _join(path, key))


def _join(*steps: str | int) -> str:
    return ".".join(str(step) for step in steps if step != "")


# ---- errors ------------------------------------------------------------------------------------------------


def _messages(error: ValidationError, raw: RawRecipe, cls: type[BaseModel]) -> list[str]:
    found = [(each, *_locate(cls, raw.values, each["loc"])) for each in error.errors(include_url=False)]
    suggested: set[tuple[str, ...]] = set()  # keys with a misspelt neighbour: not reported as missing too
    for details, path, keys in found:
        if details["type"] == "extra_forbidden":
            suggested.update((*path[:-1], near) for near in _nearest(path[-1], keys))
    messages = [
        _place(path, raw) + _explained(details, path, keys)
        for details, path, keys in found
        if not (details["type"] == "missing" and path in suggested)
    ]
    return list(dict.fromkeys(messages))


def _explained(details: ErrorDetails, path: tuple[str, ...], keys: list[str]) -> str:
    dotted, kind, value = _join(*path), details["type"], details["input"]
    if kind == "extra_forbidden":
        near = _nearest(path[-1], keys)
        remedy = f"did you mean '{near[0]}'?" if near else f"allowed here: {', '.join(keys)}"
        return f"{dotted}: unknown key; {remedy}"
    if kind == "missing":
        return f"{dotted}: missing, this key is required"
    if kind == "value_error":
        return f"{dotted}: {details['ctx']['error']}" if dotted else str(details["ctx"]["error"])
    said = details["msg"][:1].lower() + details["msg"][1:]
    if kind == "literal_error" and isinstance(value, str):
        near = _nearest(value, re.findall(r"'([^']*)'", details["ctx"]["expected"]))
        said += f"; did you mean '{near[0]}'?" if near else ""
    return f"{dotted} = {_shown(value)}: {said}"


def _place(path: tuple[str, ...], raw: RawRecipe) -> str:
    dotted = _join(*path)
    typed = [leaf for leaf, origin in raw.origins.items() if origin == COMMAND_LINE]
    if any((leaf + ".").startswith(dotted + ".") for leaf in typed):
        return f"{COMMAND_LINE}: "
    for end in range(len(path), 0, -1):
        if _join(*path[:end]) in raw.lines:
            return f"line {raw.lines[_join(*path[:end])]}: "
    return ""


def _locate(cls: type[BaseModel], values: Any, loc: Sequence[str | int]) -> tuple[tuple[str, ...], list[str]]:
    """The path of an error, and the keys allowed beside its last step.

    pydantic puts the names of union members and of validators into `loc`: they are nowhere in what was
    written, and are left out.
    """
    path: list[str] = []
    kinds: list[Any] = [cls]
    keys: list[str] = []
    here = values
    for step in loc:
        fields = [key for kind in kinds if _is_model(kind) for key in kind.model_fields]
        written = step in here if isinstance(here, dict) else isinstance(here, list) and isinstance(step, int)
        if not written and step not in fields:
            continue
        path.append(str(step))
        keys = fields
        here = here[step] if written else None
        kinds = [inner for kind in kinds for inner in _inside(kind, step)]
    return tuple(path), keys


def _inside(kind: Any, step: str | int) -> list[Any]:
    """The types that a value of type `kind` may have at key `step`, unions taken apart."""
    if _is_model(kind):
        return _alternatives(kind.model_fields[step].annotation) if step in kind.model_fields else []
    arguments = get_args(kind)
    if get_origin(kind) in (dict, Mapping):
        return _alternatives(arguments[1])
    return _alternatives(arguments[0]) if get_origin(kind) in (list, tuple, Sequence) and arguments else []


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [kind for argument in get_args(annotation) for kind in _alternatives(argument)]
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _alternatives(get_args(annotation)[0])
    return [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _nearest(word: str, candidates: Sequence[str], cutoff: float = 0.6) -> list[str]:
    """The candidate nearest to what was typed, in a list, or an empty list."""
    return difflib.get_close_matches(word, candidates, n=1, cutoff=cutoff)


def _nearest_file(path: Path) -> str:
    names = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    near = _nearest(path.name, names)
    if near:
        return f"; did you mean {path.parent / near[0]}?"
    return f"; {path.parent} holds {', '.join(names[:10])}" if names else f"; {path.parent} is no folder"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- writing -----------------------------------------------------------------------------------------------


def _yaml_rows(value: Any, path: str, indent: str, origins: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(line of YAML, origin or "") for a mapping or a list of mappings."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        head = f"{indent}{_scalar(key)}:" if isinstance(value, dict) else f"{indent}-"
        here = _join(path, key)
        if item and (isinstance(item, dict) or (isinstance(item, list) and isinstance(item[0], dict))):
            yield head, ""
            yield from _yaml_rows(item, here, indent + "  ", origins)
        else:
            yield f"{head} {_scalar(item)}", _origin(here, origins)


def _origin(path: str, origins: Mapping[str, str]) -> str:
    steps = path.split(".")
    for end in range(len(steps), 0, -1):  # a short form (language: de) is written one level higher
        origin = origins.get(".".join(steps[:end]))
        if origin:
            return origin
    return "default"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = re.fullmatch(r"[\w./%][\w./%@ -]*", value) and value == value.strip()
        return value if plain and _parse_yaml(value, "") == value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_scalar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return json.dumps(value)
