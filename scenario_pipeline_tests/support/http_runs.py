"""Invocations over HTTP, held against what must be true of any.

Belongs here: running the `http` engine against a URL. Does not belong here: the other end (`scripted_server`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from scenario_pipeline.engines.http.client import RemoteOptions
from scenario_pipeline.engines.http.engine import HttpTriggerEngine
from scenario_pipeline.log.validation import violations
from scenario_pipeline.records import PageResult
from scenario_pipeline.report import Report
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline_tests.support.people import Mentor, insert_mentors, insert_organisation
from scenario_pipeline_tests.support.runs import Log, PageOfRun, make_request, open_run, run_invocation
from scenario_pipeline_tests.support.service import TOKEN

NETWORK, TIMEOUT, LOGIC = "network_error", "timeout_error", "evaluation_logic_error"
SECRETS = ("Kari Nordmann", "kari.nordmann@example.org", "+47 22 22 55 55", "s3cret", "/srv/engine.py", TOKEN)


def http_engine(engine: Engine, url: str, **options: Any) -> HttpTriggerEngine:
    defaults: dict[str, Any] = {"token": TOKEN, "concurrency": 2, "chunk_size": 2, "backoff_seconds": 0.01}
    return HttpTriggerEngine(engine, RemoteOptions(url, **defaults | options))


@dataclass(frozen=True)
class Ran:
    """One invocation over HTTP, and what it left behind."""

    report: Report
    log: Log
    seconds: float

    @property
    def errors(self) -> dict[str, str]:
        return {
            entry["peer_mentor_id"]: entry["error_type"]
            for entry in self.log.entries
            if entry["event"] == "mentor_evaluation_error"
        }


def run(engine: Engine, url: str, *, budget: float = 20.0, log: Log | None = None, **options: Any) -> Ran:
    """Run an invocation, and hold it against everything that must hold for any."""
    request = {name: options.pop(name) for name in ("page_size", "dispatch_mode") if name in options}
    http = http_engine(engine, url, **options)
    log = log or Log()
    started = time.monotonic()
    try:
        order = replace(make_request(time_budget_seconds=budget, **request), engine_name="http")
        report = run_invocation(engine, order, log=log, trigger_engine=http)
    finally:
        http.close()
    ran = Ran(report, log, time.monotonic() - started)
    assert ran.seconds <= budget + 2, "the run must end within its budget and two seconds"
    assert list(violations(log.lines)) == []
    assert [secret for secret in SECRETS if secret.lower() in str(log.entries).lower()] == []
    return ran


def nobody_due(engine: Engine, n: int) -> list[str]:
    with engine.begin() as connection:
        insert_organisation(connection)
        return insert_mentors(connection, [Mentor(i) for i in range(1, n + 1)])


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Yield a function that says by how many megabytes this process has grown at its peak; Linux counts it."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def megabytes(name: str) -> float:
        found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(), flags=re.M)
        assert found
        return int(found[1]) / 1024

    if not clear.exists():
        yield lambda: 0.0
        return
    clear.write_text("5")
    before = megabytes("VmRSS")
    yield lambda: megabytes("VmHWM") - before


def evaluate_page(http: HttpTriggerEngine, engine: Engine, page: PageOfRun, invocation_id: str) -> PageResult:
    with engine.begin() as connection:
        open_run(connection, page.order, invocation_id)
    logger = Log().logger(invocation_id)
    return http.evaluate_page(page.order, page, invocation_id, TimeBudget.start(page.order.time_budget_seconds), logger)
