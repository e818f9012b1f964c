"""Interrupts a run at its first point, at its second, and so on, until one passes untouched.

    OWNERS_URL=postgresql://... python -m scenario_pipeline_tests.faults.enumeration SIGKILL

A point is a line about to be executed: any line of `invocation`, the lines of a page's transaction, of a write to
stdout and of what closes a run on its way out, and the moments between two pages. Each run is the real job in a process
of its own, forked from one that has everything imported; the checker judges each. Prints a sentence for each promise
that is broken, and at the end how many points there are.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from dagster import DagsterInstance
from sqlalchemy import Engine

from scenario_pipeline.defs import resources
from scenario_pipeline.defs.local_run import execute
from scenario_pipeline.engines import sql
from scenario_pipeline.invocation import closing, run
from scenario_pipeline.log import stdout
from scenario_pipeline.storage import database
from scenario_pipeline_tests.faults import checker, small_world
from scenario_pipeline_tests.faults.checker import Evidence
from scenario_pipeline_tests.support.people import D
from scenario_pipeline_tests.support.runs import Log, make_request, run_invocation
from scenario_pipeline_tests.support.server import as_scheduler

TIME_BUDGET_SECONDS = 30.0
# Longer than the checker allows: a run takes half a second, and one that hangs is to be complained of.
HANGS_AFTER_SECONDS = 60
# By file: the functions whose lines are points, or None for all of them.
ACTING: dict[str, frozenset[str] | None] = {
    run.__file__: None,
    closing.__file__: None,
    sql.__file__: frozenset({"evaluate_page", "_evaluate_in"}),
    stdout.__file__: frozenset({"write", "_write"}),
    resources.__file__: frozenset({"scheduler", "open_or_join", "close", "_tag_run"}),
    __file__: frozenset({"between_two_pages"}),
}


class Point:
    """The point at which a child interrupts itself and, once it has, when and where that was."""

    def __init__(self, number: int, signal_number: int) -> None:
        self._number, self._signal = number, signal_number
        self._seen = 0
        # Shared with the child, which may not live to tell.
        self._reached = mmap.mmap(-1, 256)

    @property
    def reached_at(self) -> datetime | None:
        """When the child interrupted itself, or None if its run was over before."""
        (seconds,) = struct.unpack("d", self._reached[:8])
        return datetime.fromtimestamp(seconds, UTC) if seconds else None

    @property
    def place(self) -> str:
        """File and line."""
        return self._reached[8:].rstrip(b"\0").decode()

    def trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        """Follow the functions that act; `sys.settrace` calls this."""
        if (file := frame.f_code.co_filename) not in ACTING:  # most calls by far
            return None
        functions = ACTING[file]
        if functions is not None and frame.f_code.co_name not in functions:
            return None
        if event == "line":
            self._seen += 1
            if self._seen == self._number:
                place = f"{Path(file).name}:{frame.f_lineno}".encode()
                self._reached[: 8 + len(place)] = struct.pack("d", time.time()) + place
                sys.settrace(None)
                os.kill(os.getpid(), self._signal)
        return self.trace


def interrupted_run(instance: DagsterInstance, point: Point, log: Path) -> Evidence:
    """Run the job in a process that interrupts itself at a point, and return what it left behind."""
    child = os.fork()
    if child == 0:
        _run_in_child(instance, point, log)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return Evidence(
        log.read_bytes(),
        TIME_BUDGET_SECONDS,
        killed=killed,
        told_to_stop_at=None if killed else point.reached_at,
        ended_at=datetime.now(UTC),
    )


def _run_in_child(instance: DagsterInstance, point: Point, log: Path) -> NoReturn:
    try:
        signal.alarm(HANGS_AFTER_SECONDS)
        for path, fd in ((log, 1), (log.with_suffix(".stderr"), 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
        sys.settrace(point.trace)
        run_job(instance)
    finally:
        os._exit(0)


def run_job(instance: DagsterInstance) -> None:
    """Run the job as the command line does."""
    config = {"evaluation_date": D.isoformat(), "dispatch_mode": "live", "page_size": small_world.PAGE_SIZE}
    execute(instance, config, evaluation_date=D, on_page=between_two_pages)


def between_two_pages(done: int, total: int) -> None:
    """Called by the job after each page."""
    del done, total


def enumerate_points(signal_number: int, owner: Engine, instance: DagsterInstance, folder: Path) -> Iterator[list[str]]:
    """Interrupt a run at each point in turn; yield what the checker complains of, at last of the run untouched."""

    def next_run() -> bytes:
        log = Log()
        run_invocation(owner, make_request(page_size=small_world.PAGE_SIZE), log=log)
        return b"".join(log.lines)

    for number in count(1):
        small_world.forget_runs(owner)
        # A child must not share our connections.
        owner.dispose()
        point = Point(number, signal_number)
        evidence = interrupted_run(instance, point, folder / f"{number}.ndjson")
        complaints = checker.complaints(evidence, owner, small_world.expected(), next_run)
        yield [f"{point.place or 'untouched'} (point {number}): {complaint}" for complaint in complaints]
        if point.reached_at is None:
            return


def main() -> None:
    """Enumerate the points of one signal over one database."""
    [name], url = sys.argv[1:], os.environ["OWNERS_URL"]
    owner = database.connect(url)
    points, broken = -1, False
    with tempfile.TemporaryDirectory() as temporary, DagsterInstance.ephemeral() as instance:
        folder = Path(temporary)
        os.environ |= {"SCENARIO_DATABASE_URL": as_scheduler(url), "SCENARIO_HOME": temporary}
        # Once undisturbed in this process, whose children then need not import, compile or plan anything.
        stdout = os.dup(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        run_job(instance)
        os.dup2(stdout, 1)
        for complaints in enumerate_points(getattr(signal, name), owner, instance, folder):
            points += 1
            broken = broken or bool(complaints)
            sys.stdout.writelines(f"{complaint}\n" for complaint in complaints)
            sys.stdout.flush()
    sys.stdout.write(f"{name}: {points} points\n")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
