"""Writes whole lines to stdout, and never lets a stalled reader hold up a run.

Belongs here: descriptors, pipes, patience and torn lines. Does not belong here: what a line says (`log.logger`).
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STDOUT = 1
NO_DESCRIPTOR = -1
# A write of at most PIPE_BUF bytes to a pipe is atomic (POSIX, write(2)). This is the value on Linux, and it is below
# every log collector's limit. Longer lines are shortened by dropping values.
MAX_LINE_BYTES = 4096
# How long readers may hold up a run. It is longer than the pauses of a busy log collector, and short enough for a run
# to end within its time budget and the two seconds for closing. This is the total of all waits; after 8 KiB written
# without waiting, the reader regains 50 ms.
STALL_SECONDS = 1.0
EARNED_SECONDS = STALL_SECONDS / 20
EARNED_BYTES = 8192


class LineSink:
    """Writes whole lines to a file descriptor, and to a second one if one is set.

    Args:
        fd: where lines go; looked up at each write, so a redirected stdout is followed.

    Attributes:
        dropped: how many lines the process's own stdout did not take.
        dropped_copies: how many lines a file with a copy of them did not take.
    """

    def __init__(self, fd: int = STDOUT) -> None:
        self.fd = fd
        self.dropped = self.dropped_copies = 0
        self._torn: set[tuple[int, int]] = set()
        # For each file that was full once: how long the sink may still wait for it, and the bytes written since without
        # waiting.
        self._patience: dict[tuple[int, int], tuple[float, int]] = {}
        self._lock = threading.Lock()
        self._copy_to: int | None = None
        # While stdout is captured, `fd` leads to the file, and the copy goes to the process's own stdout.
        self._is_copy = False
        self._observer: Callable[[bytes], None] | None = None

    def write(self, line: bytes) -> None:
        """Write one line, ending in a line feed, with a single write to each descriptor; never raises."""
        with self._lock:
            for fd, is_copy in ((self.fd, self._is_copy), (self._copy_to, not self._is_copy)):
                if fd is None or self._write(fd, line):
                    continue
                if is_copy:
                    self.dropped_copies += 1
                else:
                    self.dropped += 1
        if self._observer is not None:
            self._observer(line)

    @property
    def is_captured(self) -> bool:
        """Whether lines also go to a second descriptor."""
        return self._copy_to is not None

    @contextmanager
    def observed_by(self, observer: Callable[[bytes], None]) -> Iterator[None]:
        """Also pass each line to `observer`, for a summary of what was written."""
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before

    @contextmanager
    def copied_to_process_stdout(self) -> Iterator[None]:
        """Also write to the current stdout, while a step's stdout is captured in a file.

        Dagster would mirror the file with `tail`, which splits lines and loses the last ones.
        """
        try:
            copy = os.dup(self.fd)
        except OSError:  # the process was started without a stdout
            yield
            return
        try:
            with self.copied_to(copy):
                self._is_copy = True
                yield
        finally:
            self._is_copy = False
            os.close(copy)

    @contextmanager
    def copied_to(self, fd: int) -> Iterator[None]:
        """Also write each line to `fd`."""
        before, self._copy_to = self._copy_to, fd
        try:
            yield
        finally:
            self._copy_to = before

    def _write(self, fd: int, line: bytes) -> bool:
        """Write a line to one descriptor; return whether it stands there whole."""
        # A full disk can leave half a line; without this the next one would be glued to it.
        try:
            data = b"\n" + line if self._torn and _file_of(fd) in self._torn else line
            written = os.write(fd, data) if self._takes_a_line(fd, len(data)) else 0
        except (OSError, ValueError):  # closed, none, broken pipe, full disk: the batch goes on, the loss is reported
            return False
        if written and written < len(data):
            self._torn.add(_file_of(fd))
        elif written and self._torn:
            self._torn.discard(_file_of(fd))
        return written == len(data)

    def _takes_a_line(self, fd: int, size: int) -> bool:
        """Wait for a slow reader within its patience; return whether a write will now succeed without waiting.

        A write to a full pipe would hold the run for ever, and delay the signals that could end it. `poll` reports a
        pipe as writable when it has room for `PIPE_BUF` bytes, which is a line, so the write after it does not wait.
        Anything that is not a pipe or a socket, or is broken, counts as writable; the write reports any fault.
        """
        if not hasattr(select, "poll"):  # Windows
            return True
        ready = select.poll()
        ready.register(fd, select.POLLOUT)
        has_room = bool(ready.poll(0))
        if has_room and not self._patience:
            return True
        # All waits are added up: otherwise a reader of one line a second would hold up hundreds of lines for minutes.
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
    """Identify a file, whichever descriptor leads to it."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


# Process-wide, because stdout is. A process started without stdout must not write to the file that got its number.
STDOUT_SINK = LineSink(STDOUT if sys.stdout is not None else NO_DESCRIPTOR)
