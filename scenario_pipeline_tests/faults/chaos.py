"""Chaos: a server is restarted at once and backends are ended, at random, while two processes run over a crowd.

Belongs here: the crowd, the faults, the runs, and what is counted of them. Does not belong here: the promises
(`checker`), or how much of it is enough.
"""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from random import Random

import psycopg
from sqlalchemy import Engine, text

from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.errors import SystemicError
from scenario_pipeline.invocation.run import Invocation
from scenario_pipeline.loading.demo import load_demo
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.faults import checker
from scenario_pipeline_tests.faults.checker import Evidence, Sent
from scenario_pipeline_tests.faults.crashes import crash, port_of, start_at
from scenario_pipeline_tests.support import invariants
from scenario_pipeline_tests.support.people import DAY, D, new_invocation_id
from scenario_pipeline_tests.support.runs import Log, make_request, run_invocation
from scenario_pipeline_tests.support.server import as_scheduler, let_schedulers_in, set_fsync

TIME_BUDGET_SECONDS = 30.0
PROCESSES = 2
# How long the server stays away, after it was stopped and before it is started.
AWAY_SECONDS = (0.0, 2.0)


@dataclass(frozen=True)
class Plan:
    """How much chaos there is to be.

    Attributes:
        seconds: how long faults are made; the runs of the last date are waited for.
        mentors: how many are evaluated.
        dates: successive dates of a round; after the last, everything is checked and forgotten.
        restart_every: shortest and longest time between two restarts, in seconds.
        end_every: the same between two backends that are ended.
        seed: of the random numbers.
    """

    seconds: float
    mentors: int = 20_000
    dates: int = 10
    restart_every: tuple[float, float] = (5.0, 40.0)
    end_every: tuple[float, float] = (1.0, 5.0)
    seed: int = 1


@dataclass(frozen=True)
class Ran:
    """A run that is over: when it went on, by this machine's clock, and what it logged."""

    began: float
    ended: float
    log: bytes

    @property
    def entries(self) -> dict[str, dict[str, object]]:
        """Its entries by event."""
        return {entry["event"]: entry for entry in map(json.loads, self.log.splitlines())}

    @property
    def outcome(self) -> str:
        """How it ended, as its log says."""
        names = {"scheduler_run_partial": "partial", "scheduler_run_failed": "failed"}
        return next((name for event, name in names.items() if event in self.entries), "completed")

    @property
    def seconds_to_close(self) -> float:
        """Seconds from the first entry of its log to the last."""
        first, last = (
            datetime.fromisoformat(str(self.entries[f"scheduler_run_{name}"]["timestamp"]))
            for name in ("started", "completed")
        )
        return (last - first).total_seconds()


@dataclass
class Findings:
    """What came of it.

    Attributes:
        runs: those that are over.
        restarts: when the server was stopped, by this machine's clock.
        ended: how many backends were ended.
        complaints: one sentence for each promise that is broken.
    """

    runs: list[Ran] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    ended: int = 0
    complaints: list[str] = field(default_factory=list)

    @property
    def completed(self) -> float:
        """The share of runs that evaluated everybody; a partial one did not."""
        return sum(ran.outcome == "completed" for ran in self.runs) / len(self.runs)

    @property
    def restarts_in_runs(self) -> int:
        """How many restarts fell into a run."""
        return sum(any(ran.began < at < ran.ended for ran in self.runs) for at in self.restarts)

    @property
    def lost(self) -> int:
        """How many notifications were due and never written."""
        return sum(complaint.endswith(" is lost") for complaint in self.complaints)

    @property
    def doubled(self) -> int:
        """How many notifications are one too many: for the same crossing, date or cooldown, or not due at all."""
        signs = ("rows with", "days apart", "was not due")
        return sum(any(sign in complaint for sign in signs) for complaint in self.complaints)

    def summary(self) -> str:
        """Return the figures, one a line."""
        outcomes = [ran.outcome for ran in self.runs]
        slowest = max(ran.seconds_to_close for ran in self.runs)
        lines = (
            f"runs: {len(outcomes)}, of which partial {outcomes.count('partial')}, failed {outcomes.count('failed')}",
            f"completed: {self.completed:.1%}",
            f"restarts: {len(self.restarts)}, of which {self.restarts_in_runs} in a run",
            f"backends ended: {self.ended}",
            f"lost: {self.lost}",
            f"doubled: {self.doubled}",
            f"slowest close: {slowest:.1f} s after the first entry, budget {TIME_BUDGET_SECONDS:.0f} s",
            f"complaints: {len(self.complaints)}",
        )
        return "\n".join(lines)


class Faults(threading.Thread):
    """Restarts a server and ends backends until it is stopped."""

    def __init__(self, server: EmbeddedPostgres, plan: Plan, findings: Findings) -> None:
        super().__init__(daemon=True)
        self._server, self._plan, self._findings = server, plan, findings
        self._random = Random(plan.seed)
        self._url, self._port = server.url("postgres"), port_of(server)
        self._over = threading.Event()
        self._calm = threading.Lock()

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Make no fault during the block; the server runs when it begins."""
        with self._calm:
            yield

    def stop(self) -> None:
        """Make no further fault; the server runs afterwards."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """Make faults at random."""
        restart_at = time.monotonic() + self._random.uniform(*self._plan.restart_every)
        while True:
            until_restart = restart_at - time.monotonic()
            pause = min(self._random.uniform(*self._plan.end_every), max(0.0, until_restart))
            if self._over.wait(pause):
                return
            with self._calm:
                if time.monotonic() < restart_at:
                    self._end_a_backend()
                    continue
                self._restart()
                restart_at = time.monotonic() + self._random.uniform(*self._plan.restart_every)

    def _end_a_backend(self) -> None:
        statement = """
            SELECT pid FROM pg_stat_activity
            WHERE datname = 'scenario' AND application_name = 'scenario-pipeline' AND state <> 'idle' ORDER BY pid"""
        with psycopg.connect(self._url, autocommit=True) as connection:
            pids = [pid for (pid,) in connection.execute(statement)]
            if pids:
                connection.execute("SELECT pg_terminate_backend(%s)", [self._random.choice(pids)])
                self._findings.ended += 1

    def _restart(self) -> None:
        self._findings.restarts.append(time.time())
        crash(self._server)
        time.sleep(self._random.uniform(*AWAY_SECONDS))
        start_at(self._server, self._port)


def run_once(url: str, evaluation_date: date) -> Ran:
    """Run an invocation as a process of the scheduler does, and return its log; called in another process."""
    engine, log, invocation_id = database.connect(url), Log(), new_invocation_id()
    began = time.time()
    invocation = Invocation(
        make_request(evaluation_date, time_budget_seconds=TIME_BUDGET_SECONDS),
        invocation_id,
        database=engine,
        trigger_engine=SqlTriggerEngine(engine),
        logger=log.logger(invocation_id),
        runs_all_pages=True,
    )
    try:
        invocation.open()
        invocation.finish([invocation.evaluate(page) for page in invocation.plan()])
    except SystemicError:
        pass  # the log says so
    finally:
        engine.dispose()
    return Ran(began, time.time(), b"".join(log.lines))


class Crowd:
    """A server with demonstration data, and what undisturbed runs over it send.

    Attributes:
        server: on which it is.
        owner: connections of the owner of the tables.
        dates: of a round, in their order.
        expected: what is sent up to and including a date, when nothing happens.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.server = EmbeddedPostgres(folder / "postgres")
        self.server.start()
        database.create_database(self.server.url("postgres"), "scenario")
        self.owner: Engine = database.connect(self.server.url("scenario"))
        upgrade(self.owner)
        let_schedulers_in(self.owner)
        set_fsync(self.server, on=False)
        load_demo(self.owner, mentors=plan.mentors, today=D)
        with self.owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        self.dates = [D - days * DAY for days in reversed(range(plan.dates))]
        self.expected: dict[date, Sent] = {}
        for day in self.dates:
            assert run_invocation(self.owner, make_request(day)).status == "completed"
            self.expected[day] = frozenset((row[0], row[1], row[4]) for row in invariants.sent(self.owner))
        self.forget()

    def forget(self) -> None:
        """Bring the database back to where no run had been made."""
        with self.owner.begin() as connection:
            connection.execute(
                text("TRUNCATE scenario.scenario_notifications, scenario.scheduler_runs, scenario.scheduler_run_pages")
            )

    def complaints(self, runs: list[Ran], last: date) -> list[str]:
        """Hold the runs of a round up to a date against every promise; nothing happens to the server meanwhile."""

        def next_run() -> bytes:
            log = Log()
            run_invocation(self.owner, make_request(last), log=log)
            return b"".join(log.lines)

        # Whoever closes while the server is away has a log and no row, or an open one.
        evidence = Evidence(b"".join(ran.log for ran in runs), TIME_BUDGET_SECONDS, ledger_lost=True)
        return list(checker.complaints(evidence, self.owner, self.expected[last], next_run))

    def close(self) -> None:
        """Stop the server."""
        self.owner.dispose()
        self.server.stop()


def chaos(folder: Path, plan: Plan) -> Findings:
    """Let two processes run over the same dates while faults are made, round after round, and return the findings.

    A date is repeated until one of its runs has evaluated everybody; so each round must send what it is to send,
    however its runs were disturbed.
    """
    crowd, findings = Crowd(folder, plan), Findings()
    url = as_scheduler(crowd.server.url("scenario"))
    faults = Faults(crowd.server, plan, findings)
    try:
        with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as processes:
            faults.start()
            ends_at = time.monotonic() + plan.seconds
            while time.monotonic() < ends_at:
                done, last = _round(processes, url, crowd.dates, ends_at)
                findings.runs += done
                with faults.held_back():
                    findings.complaints += crowd.complaints(done, last)
                    crowd.forget()
            faults.stop()
    finally:
        crowd.close()
    return findings


def _round(processes: ProcessPoolExecutor, url: str, dates: list[date], ends_at: float) -> tuple[list[Ran], date]:
    """Run each date until it is done or the time is up; return the runs, and the date of the last."""
    done: list[Ran] = []
    for day in dates:
        is_done = False
        while not is_done:
            at_once = [processes.submit(run_once, url, day) for _ in range(PROCESSES)]
            done += [run.result() for run in at_once]
            is_done = any(ran.outcome == "completed" for ran in done[-PROCESSES:])
            if time.monotonic() >= ends_at:
                return done, day
    return done, day
