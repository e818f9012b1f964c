"""Many runs for many dates: in any order, side by side, from two daemons at once, by the job and by the asset."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dagster import DagsterInstance, RunRequest, build_schedule_context, materialize
from sqlalchemy import Engine, text

from scenario_pipeline.defs.assets import EVALUATIONS, NOTIFICATIONS
from scenario_pipeline.defs.checks import ASSET_CHECKS
from scenario_pipeline.storage import database
from scenario_pipeline_tests.support import invariants
from scenario_pipeline_tests.support.definitions import definitions, evaluated_asset, op_resources
from scenario_pipeline_tests.support.invariants import check_invariants, sent
from scenario_pipeline_tests.support.job_runs import RunJob
from scenario_pipeline_tests.support.people import DAY, D, ten_mentors
from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.support.server import as_scheduler
from scenario_pipeline_tests.support.stranger import stranger_accepts

DATES = ["2026-08-01", "2026-08-02", "2026-08-10", "2026-08-20"]
BACKFILL = {"dagster/backfill": "abcdefgh"}


@pytest.fixture
def engine_of_community(community_url: str) -> Iterator[Engine]:
    engine = database.connect(community_url)
    yield engine
    engine.dispose()


def totals_by_date(engine: Engine) -> dict[str, tuple[Any, ...]]:
    with engine.connect() as connection:
        rows = connection.execute(text("""
            SELECT evaluation_date::text, dispatch_mode, status, triggered_by, total_active_mentors, total_evaluated,
                total_dispatched, total_suppressed, dispatched_by_scenario, suppressed_by_reason
            FROM scenario.scheduler_runs"""))  # fmt: skip
        found = [(row[0], tuple(row[1:])) for row in rows]
    assert len(dict(found)) == len(found)
    return dict(found)


WORKER = """
import json, sys
from scenario_pipeline.definitions import defs
from scenario_pipeline.defs.instance.home import load_instance
from scenario_pipeline.settings import Settings
partition, tags, config = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
with load_instance(Settings.from_environment()) as instance:
    job = defs.resolve_job_def("scenario_scheduler")
    print("ready", file=sys.stderr, flush=True)
    sys.stdin.readline()
    run_config = {
        "ops": {"fetch_active_mentors": {"config": config}},
        "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
    }
    job.execute_in_process(instance=instance, partition_key=partition, tags=tags, run_config=run_config)
"""


def worker(
    url: str, dagster_url: str, home: Path, partition: str, tags: Mapping[str, str], **config: Any
) -> subprocess.Popen[str]:
    """Start a process that waits for a line on stdin and then runs the job for a date, as a run worker does."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WORKER, partition, json.dumps(dict(tags)), json.dumps(config)],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(PROJECT),
            "SCENARIO_DATABASE_URL": as_scheduler(url),
            "SCENARIO_DAGSTER_DATABASE_URL": dagster_url,
            "SCENARIO_HOME": str(home),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def all_at_once(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Let all processes begin together and return what each wrote to stdout."""
    for process in processes:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    written = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        stranger_accepts(stdout)
        written.append(stdout)
    return written


def test_a_dry_run_backfill_has_the_same_totals_in_any_order_and_side_by_side(
    engine_of_community: Engine, community_url: str, dagster_url: str, tmp_path: Path
) -> None:
    """The numbers of a date must not depend on which worker was faster."""
    found = []
    for order in (DATES, random.Random(4).sample(DATES, len(DATES))):
        for evaluation_date in order:
            all_at_once([worker(community_url, dagster_url, tmp_path, evaluation_date, BACKFILL)])
        found.append(totals_by_date(engine_of_community))
        with engine_of_community.begin() as connection:
            connection.execute(text("TRUNCATE scenario.scheduler_runs CASCADE"))
    all_at_once([worker(community_url, dagster_url, tmp_path, date, BACKFILL) for date in DATES])
    found.append(totals_by_date(engine_of_community))
    assert found[0] == found[1] == found[2]
    assert {row[:3] for row in found[0].values()} == {("dry_run", "completed", "backfill")}
    assert sum(row[5] for row in found[0].values()) > 0
    assert sent(engine_of_community) == []


def asset_run(instance: DagsterInstance, partition: str, **config: Any) -> None:
    """What an asset backfill runs for one date."""
    result = materialize(
        [evaluated_asset(), *ASSET_CHECKS],
        partition_key=partition,
        instance=instance,
        tags=BACKFILL,
        run_config={"ops": {"scheduler_graph": {"ops": {"fetch_active_mentors": {"config": config}}}}},
        resources=op_resources(),
    )
    assert result.success


def test_an_asset_backfill_says_the_same_as_a_run_backfill(run_job: RunJob, engine: Engine) -> None:
    """Which button was pressed is no property of a date."""
    ten_mentors(engine)
    instance = run_job(partition=D, tags=BACKFILL).instance
    by_job = totals_by_date(engine)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE scenario.scheduler_runs CASCADE"))
    asset_run(instance, D.isoformat())
    assert totals_by_date(engine) == by_job
    assert by_job[D.isoformat()][:3] == ("dry_run", "completed", "backfill")


def test_a_backfill_of_old_dates_sends_only_if_asked_to_and_says_so(run_job: RunJob, engine: Engine) -> None:
    """Re-evaluating last spring must not notify anybody; catching up after an outage may be wanted."""
    ten_mentors(engine)
    instance = run_job(partition=D - DAY, tags=BACKFILL).instance
    assert invariants.sent(engine) == []
    asset_run(instance, D.isoformat(), dispatch_mode="live")
    assert len(invariants.sent(engine)) == 3
    [dry, live] = sorted(
        instance.fetch_materializations(EVALUATIONS, limit=10).records, key=lambda record: record.storage_id
    )
    told = [record.asset_materialization.metadata if record.asset_materialization else {} for record in (dry, live)]
    assert [metadata["dispatch_mode"].value for metadata in told] == ["dry_run", "live"]
    assert "live_on_request" not in told[0]
    assert "more than 3 days" in str(told[1]["live_on_request"].value)
    # Only a run that may write is seen downstream.
    [sent] = instance.fetch_materializations(NOTIFICATIONS, limit=10).records
    assert sent.asset_materialization is not None
    assert sent.asset_materialization.metadata["notifications"].value == 3


def test_two_daemons_that_tick_at_once_dispatch_nothing_twice(
    community_url: str, dagster_url: str, tmp_path: Path, engine_of_community: Engine
) -> None:
    """Somebody starts a second daemon by mistake: neither sees the other's run, and both launch one."""
    moment = datetime(2026, 8, 1, 6, 0, tzinfo=ZoneInfo("Europe/Oslo"))
    requests: list[RunRequest] = []
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        for _ in range(2):
            context = build_schedule_context(
                instance=instance, scheduled_execution_time=moment, repository_def=definitions().get_repository_def()
            )
            schedule = definitions().resolve_schedule_def("scenario_scheduler_schedule")
            requests += schedule.evaluate_tick(context).run_requests or []
    assert [request.partition_key for request in requests] == ["2026-08-01"] * 2
    # "auto" would make a dry run of this date.
    processes = [
        worker(community_url, dagster_url, tmp_path, request.partition_key or "", request.tags, dispatch_mode="live")
        for request in requests
    ]
    closing = [json.loads(stdout.splitlines()[-1]) for stdout in all_at_once(processes)]
    assert [entry["total_evaluated"] for entry in closing] == [1298, 1298]
    assert sum(entry["total_dispatched"] for entry in closing) == 18
    assert len(sent(engine_of_community)) == 18
    with engine_of_community.connect() as connection:
        check_invariants(connection)
