"""`StructuredLogger`: the one logger of scheduler and trigger engine, NDJSON on stdout (contract section 5).

Belongs here: common fields, safe values, one write a line. Does not belong here: which events there are (`events`),
or what must not be said (`sanitiser`). Logging never raises into the batch: what cannot be written is counted.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from enum import Enum
from itertools import islice
from typing import Any
from uuid import UUID

import structlog

from scenario_pipeline.events import SCHEMA_VERSION, Event
from scenario_pipeline.sanitiser import sanitise

STDOUT = 1
NO_DESCRIPTOR = -1
# A write of at most PIPE_BUF bytes to a pipe is atomic (POSIX, write(2)); Linux' value, also below every log
# collector's limit. Longer lines are cut by dropping values.
MAX_LINE_BYTES = 4096
# How long readers may hold up a run: longer than a busy log collector pauses, and short enough for a run to end within
# its time budget and the two seconds it has for closing. All waits come out of this; a reader who then takes a score of
# lines without being waited for earns a twentieth of it back.
STALL_SECONDS = 1.0
EARNED_SECONDS = STALL_SECONDS / 20
EARNED_BYTES = 8192
MAX_TEXT = 500
MAX_COMMON_TEXT = 128
MAX_ITEMS = 64
MAX_DEPTH = 4
# Integers beyond this lose digits in readers that use double precision (RFC 8259, section 6).
MAX_INTEGER = 2**53 - 1
PLACEHOLDER = "[unserialisable]"
# What a reader looks for first stands first.
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

# C0 and C1 control characters, and the separators that some readers take for line breaks.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class LineSink:
    """Writes whole lines to a file descriptor, and to a second one while one is set.

    Args:
        fd: where lines go; looked up at each write, so a redirected stdout is followed.
    """

    def __init__(self, fd: int = STDOUT) -> None:
        self.fd = fd
        self.dropped = 0
        self._torn: set[tuple[int, int]] = set()
        # For each file that had no room once: how long it may still be waited for, and what it took since without that.
        self._patience: dict[tuple[int, int], tuple[float, int]] = {}
        self._lock = threading.Lock()
        self._copy_to: int | None = None
        self._observer: Callable[[bytes], None] | None = None

    def write(self, line: bytes) -> None:
        """Write one line, which ends in a line feed, with a single write to each descriptor; never raises."""
        with self._lock:
            for fd in (self.fd, self._copy_to):
                if fd is not None:
                    self._write(fd, line)
        if self._observer is not None:
            self._observer(line)

    @property
    def is_captured(self) -> bool:
        """Whether lines also go to a second descriptor."""
        return self._copy_to is not None

    @contextmanager
    def observed_by(self, observer: Callable[[bytes], None]) -> Iterator[None]:
        """Also hand each line to `observer`, for a summary of what was written."""
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before

    @contextmanager
    def copied_to_process_stdout(self) -> Iterator[None]:
        """Also write to what stdout is now, for as long as a step's stdout is captured in a file.

        Dagster would mirror the file with `tail`, which tears lines and loses the last ones.
        """
        try:
            copy = os.dup(self.fd)
        except OSError:  # the process was started without a stdout
            yield
            return
        try:
            with self.copied_to(copy):
                yield
        finally:
            os.close(copy)

    @contextmanager
    def copied_to(self, fd: int) -> Iterator[None]:
        """Also write each line to `fd`."""
        before, self._copy_to = self._copy_to, fd
        try:
            yield
        finally:
            self._copy_to = before

    def _write(self, fd: int, line: bytes) -> None:
        # A full disk can leave half a line; without this the next one would be glued to it.
        try:
            data = b"\n" + line if self._torn and _file_of(fd) in self._torn else line
            written = os.write(fd, data) if self._takes_a_line(fd, len(data)) else 0
        except (OSError, ValueError):  # closed, none, broken pipe, full disk: the batch goes on, the loss is reported
            self.dropped += 1
            return
        if not written:
            self.dropped += 1
        elif written < len(data):
            self._torn.add(_file_of(fd))
            self.dropped += 1
        elif self._torn:
            self._torn.discard(_file_of(fd))

    def _takes_a_line(self, fd: int, size: int) -> bool:
        """Whether a write will not wait for a reader who may never come back; waits itself for a slow one.

        A full pipe would hold the run for ever, with the signals that could end it held back. `poll` calls a pipe
        writable when it has room for `PIPE_BUF` bytes, which is a line, so the write after it does not wait. What is
        not a pipe or a socket, or is broken, is always writable, and the write says what is wrong.
        """
        if not hasattr(select, "poll"):  # Windows
            return True
        ready = select.poll()
        ready.register(fd, select.POLLOUT)
        has_room = bool(ready.poll(0))
        if has_room and not self._patience:
            return True
        # All waits are added up: a reader of one line a second would hold up hundreds of lines for minutes.
        file = _file_of(fd)
        seconds, taken = self._patience.get(file, (STALL_SECONDS, 0))
        if has_room:
            taken += size
            if taken >= EARNED_BYTES:
                seconds, taken = min(STALL_SECONDS, seconds + EARNED_SECONDS), 0
        else:
            began, taken = time.monotonic(), 0
            has_room = bool(ready.poll(seconds * 1000))
            seconds = max(0.0, seconds - (time.monotonic() - began))
        self._patience[file] = (seconds, taken)
        return has_room


def _file_of(fd: int) -> tuple[int, int]:
    """Tell files apart whatever descriptor leads to them."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


# Process-wide, because stdout is. A process started without one must not write into the file that took its number.
STDOUT_SINK = LineSink(STDOUT if sys.stdout is not None else NO_DESCRIPTOR)


def utc_now() -> datetime:
    """Return the present moment."""
    return datetime.now(UTC)


class StructuredLogger:
    """A structlog logger whose entries are the typed events of `events`.

    Args:
        sink: where lines go; stdout unless a test says otherwise.
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
        # Wrapped privately: `structlog.configure` is global, and Dagster configures it for itself.
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
        """Write one entry. Never raises: whatever is wrong with a value or with stdout costs the value or the entry."""
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
    """What structlog hands the rendered line to."""

    def __init__(self, sink: LineSink) -> None:
        self._sink = sink

    def msg(self, line: bytes) -> None:
        self._sink.write(line)


def _sanitise_message(_logger: Any, _method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if "error_message" in entry:
        message = entry["error_message"]
        entry["error_message"] = sanitise(message) if type(message) is str else PLACEHOLDER
    return entry


def _render(_logger: Any, _method: str, entry: structlog.typing.EventDict) -> bytes:
    """Return the entry as one line of strict JSON of at most `MAX_LINE_BYTES`, the common fields first."""
    own = {name: _bounded(safe_value(entry[name])) for name in COMMON_FIELDS if name in entry}
    # What the event says was added last, so it outlasts a multitude of bound fields.
    others = [name for name in entry if name not in own][-MAX_ITEMS:]
    values = own | {_safe_key(name): safe_value(entry[name]) for name in others}
    line = _encode(values) + b"\n"
    return line if len(line) <= MAX_LINE_BYTES else _shortened(values, own)


def _shortened(values: dict[str, Any], own: Mapping[str, Any]) -> bytes:
    """Let the longest field give way until the line fits, first to a placeholder and then altogether.

    Never a common field: a line that does not say whose it is would be worth nothing.
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
    """Keep a common field so short that all of them together fit into a line."""
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
    """Return `value` as something strict JSON can hold, or a placeholder; never its `repr`, which may quote a row.

    Args:
        value: anything, also what fails when it is looked at.
        depth: how deep inside containers; below `MAX_DEPTH` only placeholders stand.
    """
    try:
        return _safe_value(value, depth)
    except Exception:  # noqa: BLE001 - a hostile value costs itself and not the entry
        return PLACEHOLDER


def _safe_value(value: Any, depth: int) -> Any:
    # By exact type: a subclass may say whatever it likes when it is asked for its text.
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
