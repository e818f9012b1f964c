"""A reader of JSON Schema for the keywords that stand in ours, after the specification (draft 2020-12).

Belongs here: whether a value fits a schema. Does not belong here: the project's own schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

# A reader of JSON Schema for the keywords that stand in ours, written after the specification (draft 2020-12).
NOTES = {"$schema", "$defs", "title", "description", "discriminator"}
TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def fits(value: Any, schema: Any, root: Mapping[str, Any]) -> bool:
    if isinstance(schema, bool):
        return schema
    return all(_fits_keyword(value, word, schema, root) for word in schema.keys() - NOTES)


def _fits_keyword(value: Any, word: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    want = schema[word]
    is_object, is_text = isinstance(value, dict), isinstance(value, str)
    match word:
        case "type":
            return TYPES[want](value)
        case "$ref":
            return fits(value, root["$defs"][want.removeprefix("#/$defs/")], root)
        case "const":
            return type(value) is type(want) and bool(value == want)
        case "enum":
            return value in want
        case "anyOf":
            return any(fits(value, each, root) for each in want)
        case "oneOf":
            return sum(fits(value, each, root) for each in want) == 1
        case "minimum":
            return not TYPES["integer"](value) or value >= want
        case "maximum":
            return not TYPES["integer"](value) or value <= want
        case "minLength":
            return not is_text or len(value) >= want
        case "maxLength":
            return not is_text or len(value) <= want
        case "pattern":
            return not is_text or re.search(want, value) is not None
        case "items":
            return not isinstance(value, list) or all(fits(item, want, root) for item in value)
        case "required":
            return not is_object or set(want) <= set(value)
        case "properties":
            return not is_object or all(fits(value[name], want[name], root) for name in want.keys() & value.keys())
        case "propertyNames":
            return not is_object or all(fits(name, want, root) for name in value)
        case "patternProperties":
            return not is_object or all(
                fits(item, inner, root)
                for pattern, inner in want.items()
                for name, item in value.items()
                if re.search(pattern, name)
            )
        case "additionalProperties":
            known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
            return not is_object or all(
                fits(item, want, root)
                for name, item in value.items()
                if name not in known and not any(re.search(pattern, name) for pattern in patterns)
            )
        case _:
            raise AssertionError(f"{word} is no keyword that this reader knows")
