"""Frozen dataclasses as JSON, back from JSON with every value checked, and as JSON Schema (2020-12).

Each field is annotated as `Annotated[type, Described(...)]`; types are str, int, float, `Literal`, other such dataclasses,
`X | None`, `tuple[X, ...]` and `dict[str, X]`. JSON leaves out a field that is None if None is its default.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_TYPES = {str: "string", int: "integer", float: "number"}


@dataclass(frozen=True)
class Described:
    """What a field means.

    Attributes:
        text: what it is, with its unit and range.
        minimum, maximum: of a number, or of a tuple's items; None: no limit.
        values: all that a text may be; empty: anything.
    """

    text: str
    minimum: float | None = None
    maximum: float | None = None
    values: tuple[str, ...] = ()

    @property
    def limits(self) -> dict[str, Any]:
        """As JSON Schema has them."""
        limits = {"minimum": self.minimum, "maximum": self.maximum, "enum": list(self.values) or None}
        return {name: limit for name, limit in limits.items() if limit is not None}


class _Part(NamedTuple):
    """A field of a dataclass."""

    name: str
    kind: Any
    description: Described
    default: Any


@cache
def _parts(kind: Any) -> tuple[_Part, ...]:
    hints = get_type_hints(kind, include_extras=True)
    parts = []
    for part in fields(kind):
        annotated, description = get_args(hints[part.name])
        parts.append(_Part(part.name, annotated, description, part.default))
    return tuple(parts)


def _without_none(kind: Any) -> Any:
    """X of `X | None`."""
    (known,) = (argument for argument in get_args(kind) if argument is not types.NoneType)
    return known


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def scalar_fields(kind: Any) -> dict[str, type]:
    """The fields of a dataclass that hold one value, and its type: str, int or float."""
    kinds = {part.name: _without_none(part.kind) if _is_union(part.kind) else part.kind for part in _parts(kind)}
    kinds = {name: str if get_origin(kind) is Literal else kind for name, kind in kinds.items()}
    return {name: kind for name, kind in kinds.items() if kind in _TYPES}


def to_json(value: Any) -> Any:
    """What `json.dumps` takes: dataclasses become objects, tuples lists."""
    if is_dataclass(value):
        parts = [(part.name, getattr(value, part.name), part.default) for part in fields(value)]
        return {name: to_json(content) for name, content, default in parts if content is not None or default is not None}
    if isinstance(value, dict):
        return {name: to_json(content) for name, content in value.items()}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def from_json(kind: type[T], document: Any, place: str = "") -> T:
    """Build a dataclass from what `json.loads` returns. Fields that it does not have are ignored.

    Raises:
        ValueError: a field is missing or has another type or range; the text begins with its place, as `metrics.perc15_hu`.
    """
    if not isinstance(document, dict):
        raise ValueError(f"{f'{place}: ' if place else ''}{document!r} is no object")
    values = {}
    for part in _parts(kind):  # type: ignore[arg-type]  # classes can be hashed
        where = f"{place}.{part.name}" if place else part.name
        if part.name in document:
            values[part.name] = _value(part.kind, document[part.name], where, part.description)
        elif part.default is MISSING:
            raise ValueError(f"{where} is missing")
    return kind(**values)


def _value(kind: Any, value: Any, place: str, description: Described) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if _is_union(kind):
        return None if value is None else _value(_without_none(kind), value, place, description)
    if is_dataclass(kind):
        return from_json(kind, value, place)  # type: ignore[arg-type]  # a class
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, f"{place}[{number}]", description) for number, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _value(arguments[1], item, f"{place}.{name}", description) for name, item in value.items()}
    if origin is Literal:
        return _scalar(str, value, place, Described("", values=arguments))
    return _scalar(kind, value, place, description)


def _scalar(kind: Any, value: Any, place: str, description: Described) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    limits = description.limits
    fits = type(value) is kind and (
        limits.get("minimum", value) <= value <= limits.get("maximum", value)
        if kind in (int, float)
        else value in (description.values or (value,))
    )
    if not fits:
        expected = [_TYPES.get(kind, "list or object"), *(f"{name} {limit}" for name, limit in limits.items())]
        raise ValueError(f"{place} is {value!r}, expected {', '.join(expected)}")
    return value


def schema_of(kind: Any, definitions: dict[str, Any], description: Described | None = None) -> dict[str, Any]:
    """The schema of a type; those of dataclasses are added to `definitions`, which become `$defs`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        name = kind.__name__  # type: ignore[union-attr]  # a class
        if name not in definitions:
            definitions[name] = _object_schema(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    if _is_union(kind):
        schema = schema_of(_without_none(kind), definitions, description)
        return schema | {"type": [schema["type"], "null"]} if "type" in schema else {"anyOf": [schema, {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": schema_of(arguments[0], definitions, description)}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], definitions, description)}
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    return {"type": _TYPES[kind], **(description.limits if description else {})}


def _object_schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {}
    for part in _parts(kind):
        written = _without_none(part.kind) if part.default is None else part.kind
        properties[part.name] = {"description": part.description.text, **schema_of(written, definitions, part.description)}
    return {
        "description": kind.__doc__.partition("\n")[0],
        "type": "object",
        "properties": properties,
        "required": [part.name for part in _parts(kind) if part.default is not None],
    }
