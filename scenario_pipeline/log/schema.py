"""The published JSON Schema of a log line, built from the vocabulary (contract section 5).

Belongs here: strict models of whole lines, and their schema. Does not belong here: the order of entries
(`log.validation`).
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Annotated, Any, Literal, Union, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model

from scenario_pipeline.log.vocabulary import SCHEMA_VERSION, UUID4_PATTERN, UUID_PATTERN, VOCABULARY

_OF_THE_RUN = frozenset({"invocation_id", "dagster_run_id", "dagster_job_name"})


@cache
def line_models() -> tuple[type[BaseModel], ...]:
    """Build strict models of whole log lines: the common fields plus those of each event."""
    common: dict[str, Any] = {
        "timestamp": (Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")], ...),
        "invocation_id": (Annotated[str, Field(pattern=UUID4_PATTERN)], ...),
        # Not a literal, because `true` and `1.0` equal 1.
        "schema_version": (Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)], ...),
        "dagster_run_id": (Annotated[str, Field(pattern=UUID_PATTERN)], ...),
        "dagster_job_name": (Annotated[str, Field(min_length=1)], ...),
        "dagster_step_key": (str | None, ...),
        "dagster_partition_key": (str | None, ...),
    }
    lines = []
    for kind in VOCABULARY:
        hints = get_type_hints(kind, include_extras=True)
        further: dict[str, Any] = {item.name: (hints[item.name], ...) for item in dataclasses.fields(kind)}
        for name, allowed in (("event", kind.name), ("level", kind.levels), ("component", kind.component)):
            further[name] = (Literal[allowed], ...)
        if not kind.within_run:
            further |= {name: (kept | None, ...) for name, (kept, _) in common.items() if name in _OF_THE_RUN}
        line = create_model(
            kind.__name__,
            __config__=ConfigDict(extra="forbid", strict=True),
            __doc__=kind.__doc__,
            **(common | further),
        )
        lines.append(line)
    return tuple(lines)


@cache
def line_adapter() -> TypeAdapter[Any]:
    """Return the validator of one line, chosen by its event."""
    union: Any = Union[line_models()]  # noqa: UP007 - built from a tuple
    return TypeAdapter(Annotated[union, Field(discriminator="event")])


def json_schema() -> dict[str, Any]:
    """Return the published JSON Schema (draft 2020-12) of one line of the event log."""
    schema = _closed(line_adapter().json_schema())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Scenario pipeline event",
        "description": "One line of the NDJSON event log, schema_version 1.",
        **schema,
    }


def _closed(schema: Any) -> Any:
    """Refuse names that fit no pattern; a mapping with patterns alone would accept any other name."""
    match schema:
        case dict():
            closed = {word: _closed(inner) for word, inner in schema.items()}
            return closed | ({"additionalProperties": False} if "patternProperties" in schema else {})
        case list():
            return [_closed(inner) for inner in schema]
        case _:
            return schema
