"""The one `StructuredLogger`: typed events in, one line of strict JSON out (contract section 5).

Belongs here: common fields, safe values, rendering. Does not belong here: the events (`log.vocabulary`), sanitising
text (`sanitiser`) or the descriptor (`log.stdout`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from enum import Enum
from itertools import islice
from typing import Any
from uuid import UUID

import structlog

from scenario_pipeline.log.stdout import MAX_LINE_BYTES, STDOUT_SINK, LineSink
from scenario_pipeline.log.vocabulary import SCHEMA_VERSION, Event
from scenario_pipeline.sanitiser import OwnWords, sanitise

MAX_TEXT = 500
MAX_COMMON_TEXT = 128
MAX_ITEMS = 64
MAX_DEPTH = 4
# Integers beyond this lose digits in readers that use double precision (RFC 8259, section 6).
MAX_INTEGER = 2**53 - 1
PLACEHOLDER = "[unserialisable]"
# In the order in which a reader looks for them.
COMMON_FIELDS = (
    "timestamp",
    "level",
    "event",
    "component",
    "invocation_id",
    "schema_version",
    "dagster_run_id",
    "dagster_job_name",
    "dagster_step_key",
    "dagster_partition_key",
)
# C0 and C1 control characters, and the separators that some readers treat as line breaks.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


class StructuredLogger:
    """A structlog logger whose entries are the typed events of `log.vocabulary`.

    Args:
        sink: where lines go; stdout except in tests.
        now: the wall clock for `timestamp`.
        context: fields of every entry; use `bind` to add some.
    """

    def __init__(
        self,
        sink: LineSink | None = None,
        *,
        now: Callable[[], datetime] = utc_now,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self.sink = STDOUT_SINK if sink is None else sink
        self._now = now
        # Wrapped privately, because `structlog.configure` is global and Dagster configures it for itself.
        self._logger = structlog.wrap_logger(
            _SinkLogger(self.sink),
            processors=[self._add_timestamp, _sanitise_message, _render],
            wrapper_class=structlog.BoundLoggerBase,
            context_class=dict,
        ).bind(**(context or {}))

    def bind(self, **context: Any) -> StructuredLogger:
        """Return a logger whose entries also carry `context`."""
        bound = object.__new__(StructuredLogger)
        bound.sink, bound._now, bound._logger = self.sink, self._now, self._logger.bind(**context)
        return bound

    def emit(self, event: Event) -> None:
        """Write one entry; never raises. A fault of a value or of stdout costs that value or the entry."""
        try:
            self._logger._proxy_to_logger(  # noqa: SLF001 - structlog's documented hook for custom wrappers
                "msg",
                event.name,
                **event.fields(),
                level=_level_of(event),
                component=event.component,
                schema_version=SCHEMA_VERSION,
            )
        except Exception:  # noqa: BLE001 - the boundary of the logger: it must not fail the batch
            self.sink.dropped += 1

    def _add_timestamp(
        self, _logger: Any, _method: str, entry: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        stamp = self._now().astimezone(UTC).isoformat(timespec="milliseconds")
        entry["timestamp"] = stamp.replace("+00:00", "Z")
        return entry


def _level_of(event: Event) -> str:
    try:
        return event.level
    except Exception:  # noqa: BLE001 - a level may depend on a field, and a field may be anything
        return event.levels[-1]


class _SinkLogger:
    """The object to which structlog passes the rendered line."""

    def __init__(self, sink: LineSink) -> None:
        self._sink = sink

    def msg(self, line: bytes) -> None:
        self._sink.write(line)


def _sanitise_message(_logger: Any, _method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if "error_message" in entry:
        message = entry["error_message"]
        if type(message) is OwnWords:
            entry["error_message"] = str(message)
        else:
            entry["error_message"] = sanitise(message) if type(message) is str else PLACEHOLDER
    return entry


def _render(_logger: Any, _method: str, entry: structlog.typing.EventDict) -> bytes:
    """Return the entry as one line of strict JSON of at most `MAX_LINE_BYTES`, the common fields first."""
    own = {name: _bounded(safe_value(entry[name])) for name in COMMON_FIELDS if name in entry}
    # The fields of the event were added last, so they survive even when there are too many bound fields.
    others = [name for name in entry if name not in own][-MAX_ITEMS:]
    values = own | {_safe_key(name): safe_value(entry[name]) for name in others}
    line = _encode(values) + b"\n"
    return line if len(line) <= MAX_LINE_BYTES else _shortened(values, own)


def _shortened(values: dict[str, Any], own: Mapping[str, Any]) -> bytes:
    """Shorten the line until it fits: replace the longest field by a placeholder, then drop it.

    Common fields are never dropped: a line that does not identify its run would be useless.
    """
    sizes = {name: len(_encode(value)) for name, value in values.items() if name not in own}
    while len(line := _encode(values) + b"\n") > MAX_LINE_BYTES:
        longest = max(sizes, key=lambda name: len(name) + sizes[name])
        if sizes[longest] > len(PLACEHOLDER) + 2:
            values[longest], sizes[longest] = PLACEHOLDER, len(PLACEHOLDER) + 2
        else:
            del values[longest], sizes[longest]
    return line


def _bounded(value: Any) -> Any:
    """Shorten a common field, so that all of them together fit into a line."""
    if isinstance(value, str):
        return value[:MAX_COMMON_TEXT]
    return PLACEHOLDER if isinstance(value, dict | list) else value


def _safe_key(name: Any) -> str:
    return safe_text(name) if type(name) is str else PLACEHOLDER


# One encoder for all lines: `json.dumps` would build one for each.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _encode(value: Any) -> bytes:
    return _ENCODER.encode(value).encode("utf-8")


def safe_value(value: Any, depth: int = 0) -> Any:
    """Return `value` in a form that strict JSON can hold, or a placeholder; never its `repr`, which may quote a row.

    Args:
        value: anything, even an object that raises when it is inspected.
        depth: depth inside containers; below `MAX_DEPTH` there are only placeholders.
    """
    try:
        return _safe_value(value, depth)
    except Exception:  # noqa: BLE001 - a hostile value costs itself and not the entry
        return PLACEHOLDER


def _safe_value(value: Any, depth: int) -> Any:
    # By exact type, because a subclass may return any text for itself.
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return safe_text(value)
    if kind is int:
        return value if -MAX_INTEGER <= value <= MAX_INTEGER else PLACEHOLDER
    if kind is float:
        return value if math.isfinite(value) else PLACEHOLDER
    if kind in (UUID, date, datetime):
        return str(value)
    if issubclass(kind, Enum):
        return safe_value(value.value, depth)
    if depth < MAX_DEPTH:
        if kind is dict:
            return {_safe_key(key): safe_value(item, depth + 1) for key, item in islice(value.items(), MAX_ITEMS)}
        if kind in (list, tuple, set, frozenset):
            return [safe_value(item, depth + 1) for item in islice(value, MAX_ITEMS)]
    return PLACEHOLDER


def safe_text(value: str) -> str:
    """Return at most `MAX_TEXT` characters on one line, without control characters or lone surrogates."""
    text = value[:MAX_TEXT]
    return text if text.isprintable() else _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text))
