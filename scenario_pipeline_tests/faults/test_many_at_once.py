"""Many runs at once over many mentors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from scenario_pipeline.loading.demo import load_demo
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.faults import checker
from scenario_pipeline_tests.faults.checker import Evidence, Sent
from scenario_pipeline_tests.faults.installation import FaultyInstallation
from scenario_pipeline_tests.support import invariants
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import D
from scenario_pipeline_tests.support.runs import make_request, run_invocation
from scenario_pipeline_tests.support.server import copy_database

pytestmark = pytest.mark.faults

PROCESSES, MENTORS, PAGE_SIZE, TIME_BUDGET_SECONDS = 8, 10_000, 1000, 120.0


@pytest.fixture
def crowd(database_url: str, dagster_url: str, tmp_path: Path) -> Iterator[FaultyInstallation]:
    """An installation with demonstration data of ten thousand mentors."""
    installation = FaultyInstallation(database_url, dagster_url, tmp_path / "home")
    load_demo(installation.engine, mentors=MENTORS, today=D)
    installation.page_size = PAGE_SIZE
    yield installation
    installation.engine.dispose()


def undisturbed(server: EmbeddedPostgres, crowd: FaultyInstallation) -> Sent:
    """Return what one run alone sends over a copy of the same data."""
    crowd.engine.dispose()
    name = "undisturbed_crowd"
    copy_database(server, name, crowd.url.rsplit("/", 1)[1])
    engine = database.connect(server.url(name))
    run_invocation(engine, make_request(page_size=PAGE_SIZE))
    sent = frozenset((row[0], row[1], row[4]) for row in invariants.sent(engine))
    engine.dispose()
    return sent


def test_eight_processes_over_ten_thousand_mentors_send_everything_once(
    server: EmbeddedPostgres, crowd: FaultyInstallation
) -> None:
    """Eight schedulers that know nothing of each other: nobody hears twice, and the sums are those of the rows."""
    expected = undisturbed(server, crowd)
    assert len(expected) > 100
    with ExitStack() as stack:
        runs = [stack.enter_context(crowd.running(time_budget_seconds=TIME_BUDGET_SECONDS)) for _ in range(PROCESSES)]
        left = [run.end() for run in runs]
    assert [evidence.exit_status for evidence in left] == [0] * PROCESSES
    closing = [json.loads(evidence.log.splitlines()[-1]) for evidence in left]
    assert sum(entry["total_dispatched"] for entry in closing) == len(sent(crowd.engine)) == len(expected)
    together = Evidence(b"".join(evidence.log for evidence in left), TIME_BUDGET_SECONDS)
    checker.check(together, crowd.engine, expected, crowd.next_run)
