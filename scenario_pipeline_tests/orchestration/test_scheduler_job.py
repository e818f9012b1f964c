"""The job `scenario_scheduler` as Dagster runs it, on a real database, down to the lines on stdout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import ClassVar

import pytest
from dagster import DagsterRunStatus, OpExecutionContext, materialize
from sqlalchemy import Engine, text

from scenario_pipeline.defs.assets import EVALUATIONS
from scenario_pipeline.defs.job import JOB_NAME, scheduler_graph
from scenario_pipeline.defs.resources import StructuredLoggerResource
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import STDOUT_SINK
from scenario_pipeline_tests.support.definitions import evaluated_asset, op_resources
from scenario_pipeline_tests.support.descriptors import pipe_of_writes
from scenario_pipeline_tests.support.invariants import consistent, sent
from scenario_pipeline_tests.support.job_runs import RunJob
from scenario_pipeline_tests.support.logger_promises import LoggerAndLines, LoggerPromises
from scenario_pipeline_tests.support.people import (
    DAY,
    D,
    configure,
    insert_mentor,
    insert_organisation,
    mentor_id,
    ten_mentors,
)
from scenario_pipeline_tests.support.server import SCHEDULERS, as_scheduler
from scenario_pipeline_tests.support.stranger import stranger_accepts
from scenario_pipeline_tests.support.triggers import lose_the_connection_for, refuse_notifications_of

ALL = ["certification_expiry", "inactivity", "milestone"]


@pytest.fixture(params=SCHEDULERS)
def scheduler_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """Every test of the job, in both ways in which a scheduler may see all rows."""
    return as_scheduler(database_url, request.param)


def test_a_run_says_that_it_started_and_what_it_will_do(run_job: RunJob, engine: Engine) -> None:
    """The log must say who asked for what before anything happens."""
    ten_mentors(engine)
    run = run_job(evaluation_date=D.isoformat(), dispatch_mode="live", time_budget_seconds=12.5)
    started = run.entries[0]
    assert started.pop("timestamp")
    assert started == {
        "level": "info",
        "event": "scheduler_run_started",
        "component": "scenario-scheduler",
        "invocation_id": run.result.run_id,
        "schema_version": 1,
        "dagster_run_id": run.result.run_id,
        "dagster_job_name": JOB_NAME,
        "dagster_step_key": "fetch_active_mentors",
        "dagster_partition_key": None,
        "triggered_by": "manual",
        "evaluation_date": D.isoformat(),
        "scenario_types": ALL,
        "dispatch_mode": "live",
        "time_budget_ms": 12500,
    }


def test_a_completed_run_counts_the_mentor_list_exactly(run_job: RunJob, engine: Engine) -> None:
    """The closing entry is the bank statement: every number must be the one that happened."""
    ten_mentors(engine)
    run = run_job(evaluation_date=D.isoformat(), dispatch_mode="live", page_size=4)
    assert run.names == ["scheduler_run_started", "scheduler_run_completed"]
    completed = run.entry("scheduler_run_completed")
    assert completed.pop("duration_ms") >= 0
    totals = {name: value for name, value in completed.items() if name not in run.entries[0]}
    assert totals == {
        "completed": True,
        "total_active_mentors": 10,
        "total_evaluated": 10,
        "total_dispatched": 3,
        "total_suppressed": 1,
        "total_errors": 0,
        "pages_processed": 3,
        "suppressed_by_reason": {"opted_out": 1},
        "dispatched_by_scenario": {"inactivity": 3},
    }
    assert [row[0] for row in sent(engine)] == [mentor_id(n) for n in (1, 2, 3)]
    consistent(engine)


def test_a_mentor_who_cannot_be_evaluated_is_reported_and_the_batch_goes_on(run_job: RunJob, engine: Engine) -> None:
    """One broken row must cost one mentor, not the other nine."""
    ten_mentors(engine)
    refuse_notifications_of(engine, [mentor_id(2)])
    run = run_job(evaluation_date=D.isoformat(), dispatch_mode="live")
    assert run.names == ["scheduler_run_started", "mentor_evaluation_error", "scheduler_run_completed"]
    error = run.entry("mentor_evaluation_error")
    assert (error["level"], error["peer_mentor_id"], error["error_type"], error["error_message"]) == (
        "warning",
        mentor_id(2),
        "evaluation_logic_error",
        "SQLSTATE P0001 raise_exception",
    )
    completed = run.entry("scheduler_run_completed")
    assert (completed["completed"], completed["total_evaluated"], completed["total_errors"]) == (True, 9, 1)
    assert completed["total_dispatched"] == 2
    stranger_accepts(run.stdout)
    consistent(engine)


def test_the_time_guard_reports_what_remains(run_job: RunJob, engine: Engine) -> None:
    """A run that cannot finish in time must say how many it left, and be seen as partial in Dagster."""
    ten_mentors(engine)
    with engine.connect() as other:
        other.execute(text("LOCK TABLE scenario.mentor_activities IN ACCESS EXCLUSIVE MODE"))
        run = run_job(evaluation_date=D.isoformat(), dispatch_mode="live", page_size=4, time_budget_seconds=0.3)
    assert run.names == ["scheduler_run_started", "scheduler_run_partial", "scheduler_run_completed"]
    partial = run.entry("scheduler_run_partial")
    assert (partial["level"], partial["reason"], partial["remaining_unprocessed_count"]) == (
        "warning",
        "time_budget",
        10,
    )
    completed = run.entry("scheduler_run_completed")
    assert (completed["level"], completed["completed"], completed["total_active_mentors"]) == ("warning", False, 10)
    assert run.status is DagsterRunStatus.SUCCESS
    assert (run.tags["outcome"], run.tags["partial"]) == ("partial", "time_budget")
    stranger_accepts(run.stdout)
    consistent(engine)


def test_the_log_is_closed_by_the_step_that_finds_the_budget_spent(run_job: RunJob, engine: Engine) -> None:
    """Each page that is left costs Dagster a step: dozens of them took seconds after the end of the budget."""
    ten_mentors(engine)
    with engine.connect() as other:
        other.execute(text("LOCK TABLE scenario.mentor_activities IN ACCESS EXCLUSIVE MODE"))
        run = run_job(evaluation_date=D.isoformat(), dispatch_mode="live", page_size=1, time_budget_seconds=0.3)
    assert {entry["dagster_step_key"] for entry in run.entries[1:]} == {"evaluate_mentor[page_00001]"}
    assert run.status is DagsterRunStatus.SUCCESS
    stranger_accepts(run.stdout)


def test_the_next_run_starts_with_the_mentors_left_over(run_job: RunJob, engine: Engine) -> None:
    """Nobody may starve at the end of the list because each run begins at its start."""
    mentor_ids = ten_mentors(engine)[:10]
    with engine.connect() as other:
        other.execute(text("LOCK TABLE scenario.mentor_activities IN ACCESS EXCLUSIVE MODE"))
        run_job(evaluation_date=D.isoformat(), dispatch_mode="live", page_size=4, time_budget_seconds=0.3)
    run_job(evaluation_date=D.isoformat(), dispatch_mode="live", page_size=4)
    with engine.connect() as connection:
        rows = connection.execute(
            text("""
            SELECT p.last_mentor_id::text FROM scenario.scheduler_run_pages p JOIN scenario.scheduler_runs r
            USING (invocation_id) WHERE r.status = 'completed' ORDER BY p.page_number""")
        )
        last_of_each_page = list(rows.scalars())
    # The page that a whole budget could not finish (mentors 1 to 4) went to the end of the queue.
    assert last_of_each_page == [mentor_ids[7], mentor_ids[1], mentor_ids[3]]


@pytest.mark.parametrize(
    ("fault", "error_type", "sentence"),
    [
        (
            "DELETE FROM scenario.alembic_version",
            "database_error",
            "the database has no schema of this project: run scenario-pipeline db upgrade",
        ),
        (
            "DELETE FROM scenario.scenario_evaluation_config WHERE scenario_type = 'milestone'",
            "database_error",
            "the scenario milestone has no default configuration: run scenario-pipeline db upgrade",
        ),
        (
            "DROP VIEW scenario.source_mentors",
            "database_error",
            "the view scenario.source_mentors does not exist: define the view again",
        ),
        (
            "ALTER VIEW scenario.source_activities RENAME COLUMN activity_date TO gone",
            "database_error",
            "the view scenario.source_activities has no column activity_date, which must be date: define the view",
        ),
        (
            "ALTER TABLE scenario.mentor_activities DROP COLUMN activity_date CASCADE; "
            "CREATE VIEW scenario.source_activities AS SELECT user_id, activity_type, now() AS activity_date "
            "FROM scenario.mentor_activities",
            "database_error",
            "the column activity_date of the view scenario.source_activities is timestamp with time zone, "
            "and must be date: define the view again",
        ),
    ],
    ids=["no schema", "no configuration", "no view", "no column", "a column of another type"],
)
def test_a_failure_of_the_whole_run_is_reported_as_one(
    run_job: RunJob, engine: Engine, fault: str, error_type: str, sentence: str
) -> None:
    """A run over a broken database must end as failed, in the log and in Dagster, not as "0 mentors"."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(text(fault))
    run = run_job(evaluation_date=D.isoformat(), dispatch_mode="live", page_size=4)
    assert run.names == ["scheduler_run_started", "scheduler_run_failed", "scheduler_run_completed"]
    failed = run.entry("scheduler_run_failed")
    assert (failed["level"], failed["error_type"]) == ("error", error_type)
    assert failed["error_message"].startswith(sentence)
    assert run.entry("scheduler_run_completed")["completed"] is False
    assert run.status is DagsterRunStatus.FAILURE
    stranger_accepts(run.stdout)


def test_a_database_that_is_down_at_the_start_is_reported(run_job: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log must say so even if nothing else can be written."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", "postgresql://user:a-secret@127.0.0.1:1/nowhere")
    run = run_job()
    assert run.names == ["scheduler_run_started", "scheduler_run_failed", "scheduler_run_completed"]
    failed = run.entry("scheduler_run_failed")
    assert (failed["error_type"], failed["remaining_unprocessed_count"]) == ("network_error", None)
    assert "a-secret" not in run.stdout + run.stderr + run.everything_dagster_keeps()
    stranger_accepts(run.stdout)


def test_a_page_that_ends_its_connection_each_time_fails_the_run_and_keeps_what_was_committed(
    run_job: RunJob, engine: Engine
) -> None:
    """What was sent before the fault stays sent and counted; the rest is left to the next run."""
    ten_mentors(engine)
    lose_the_connection_for(engine, mentor_id(3))
    run = run_job(evaluation_date=D.isoformat(), dispatch_mode="live", page_size=1)
    assert run.names == [
        "scheduler_run_started",
        *["trigger_engine_page_retried"] * 4,
        "scheduler_run_failed",
        "scheduler_run_completed",
    ]
    failed = run.entry("scheduler_run_failed")
    assert (failed["error_type"], failed["remaining_unprocessed_count"]) == ("network_error", 8)
    completed = run.entry("scheduler_run_completed")
    assert (completed["total_evaluated"], completed["total_dispatched"]) == (2, 2)
    stranger_accepts(run.stdout)
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER die ON scenario.scenario_notifications"))
    again = run_job(evaluation_date=D.isoformat(), dispatch_mode="live", page_size=1).entry("scheduler_run_completed")
    assert (again["total_dispatched"], again["suppressed_by_reason"]) == (1, {"duplicate": 2, "opted_out": 1})
    consistent(engine)


def test_no_personal_value_reaches_any_output(run_job: RunJob, engine: Engine) -> None:
    """Names, addresses and numbers stay in the database, even if the database quotes them in its errors."""
    canaries = ["Canary Nordmann", "canary@mentor.invalid", "+47 40 99 88 77"]
    with engine.begin() as connection:
        insert_organisation(connection)
        insert_mentor(
            connection, activities=[D - 30 * DAY], full_name=canaries[0], email=canaries[1], phone=canaries[2]
        )
    refuse_notifications_of(engine, [mentor_id(1)], quoting=" ".join(canaries))
    run = run_job(evaluation_date=D.isoformat(), dispatch_mode="live")
    assert run.entry("scheduler_run_completed")["total_errors"] == 1
    with engine.connect() as connection:
        ledger = str(connection.execute(text("SELECT errors FROM scenario.scheduler_run_pages")).scalars().all())
    everything = run.stdout + run.stderr + run.everything_dagster_keeps() + ledger
    for word in " ".join(canaries).split(" "):
        if len(word) > 2:
            assert word not in everything
    stranger_accepts(run.stdout, canaries)


def test_a_dry_run_counts_what_would_be_sent_and_sends_nothing(run_job: RunJob, engine: Engine) -> None:
    """A backfill of an old month must never send; here the date is old, so `auto` is a dry run."""
    ten_mentors(engine)
    run = run_job(evaluation_date=D.isoformat())
    assert run.entries[0]["dispatch_mode"] == "dry_run"
    assert run.entry("scheduler_run_completed")["total_dispatched"] == 3
    assert sent(engine) == []
    consistent(engine)


def test_a_partition_is_the_date_that_is_evaluated(run_job: RunJob, engine: Engine) -> None:
    """A backfill names its dates by partition only."""
    ten_mentors(engine)
    run = run_job(partition=D, tags={"dagster/backfill": "abc"})
    assert (run.entries[0]["evaluation_date"], run.entries[0]["dagster_partition_key"]) == (D.isoformat(),) * 2
    assert run.entries[0]["triggered_by"] == "backfill"


def test_the_asset_shows_a_date_whichever_way_it_was_evaluated(
    run_job: RunJob, engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    """Someone who looks at the asset must see what the schedule did, and the other way round."""
    ten_mentors(engine)
    instance = run_job(evaluation_date=D.isoformat()).instance
    capfd.readouterr()
    result = materialize(
        [evaluated_asset()],
        partition_key=(D + DAY).isoformat(),
        instance=instance,
        resources=op_resources(),
    )
    stranger_accepts(capfd.readouterr().out)
    key = EVALUATIONS
    assert instance.get_materialized_partitions(key) == {D.isoformat(), (D + DAY).isoformat()}
    events = instance.fetch_materializations(key, limit=10).records
    shown = {
        record.partition_key: record.asset_materialization.metadata["total_active_mentors"].value
        for record in events
        if record.asset_materialization is not None
    }
    # The eleventh mentor joined a day later.
    assert shown == {D.isoformat(): 10, (D + DAY).isoformat(): 11}
    assert result.success


def test_a_database_without_mentors_is_a_completed_run(run_job: RunJob) -> None:
    """An organisation's first day is no failure."""
    run = run_job()
    completed = run.entry("scheduler_run_completed")
    assert (completed["completed"], completed["total_active_mentors"], completed["pages_processed"]) == (True, 0, 0)
    stranger_accepts(run.stdout)


def test_the_totals_stand_in_the_ledger_the_log_and_dagster_alike(run_job: RunJob, engine: Engine) -> None:
    """Three places that disagree would be worth less than one."""
    ten_mentors(engine)
    run = run_job(evaluation_date=D.isoformat(), dispatch_mode="live", page_size=3)
    completed = run.entry("scheduler_run_completed")
    [metadata] = [
        event.step_output_data.metadata
        for event in run.result.all_events
        if event.is_successful_output and event.step_key == "summarize_run"
    ]
    with engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM scenario.scheduler_runs")).mappings().one()
    names = [name for name in completed if name.startswith("total_") or name in ("pages_processed", "duration_ms")]
    assert len(names) == 7
    for name in names:
        assert (metadata[name].value, row[name]) == (completed[name], completed[name])
    assert (row["status"], row["suppressed_by_reason"]) == ("completed", completed["suppressed_by_reason"])


def test_an_operator_sees_what_each_scenario_costs(run_job: RunJob, engine: Engine) -> None:
    """The configuration rows carry how many mentors were evaluated by them, and when, once a run."""
    ten_mentors(engine)
    with engine.begin() as connection:
        insert_organisation(connection, 2)
        insert_mentor(connection, 20, organisation=2)
        configure(connection, "inactivity", organisation=2)
    run_job(evaluation_date=D.isoformat(), scenario_types=["inactivity"])
    with engine.connect() as connection:
        rows = connection.execute(text(
            "SELECT scenario_type, organisation_id IS NULL, last_evaluated_count, last_evaluated_at IS NOT NULL "
            "FROM scenario.scenario_evaluation_config ORDER BY 1, 2 DESC"))  # fmt: skip
        assert [tuple(row) for row in rows] == [
            ("certification_expiry", True, None, False),
            ("inactivity", True, 10, True),
            ("inactivity", False, 1, True),
            ("milestone", True, None, False),
        ]


class Remembering(StructuredLoggerResource):
    """The shared logger's resource, which also keeps what it handed to the scheduler."""

    # Of the class: Dagster makes its own copy of a resource for a run.
    handed: ClassVar[list[StructuredLogger]] = []

    def bound_to(self, context: OpExecutionContext) -> StructuredLogger:
        self.handed.append(super().bound_to(context))
        return self.handed[-1]


@pytest.fixture(scope="module")
def handed(tmp_path_factory: pytest.TempPathFactory) -> StructuredLogger:
    """The logger with which the scheduler wrote the events of a run."""
    resource = Remembering()
    with pytest.MonkeyPatch.context() as patch, pipe_of_writes() as (fd, writes):
        patch.setenv("SCENARIO_DATABASE_URL", "postgresql://127.0.0.1:1/nowhere")
        patch.setenv("SCENARIO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(STDOUT_SINK, "fd", fd)
        resources = op_resources() | {"structured_logger": resource}
        scheduler_graph.execute_in_process(resources=resources, raise_on_error=False)
        assert [json.loads(line)["event"] for line in writes()] == [
            "scheduler_run_started",
            "scheduler_run_failed",
            "scheduler_run_completed",
        ]
    return resource.handed[0]


class TestTheLoggerThatTheSchedulerIsHanded(LoggerPromises):
    """The scheduler has no logger of its own: what it is handed keeps every promise of the shared one."""

    @pytest.fixture
    def logger_and_lines(self, handed: StructuredLogger, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoggerAndLines]:
        with pipe_of_writes() as (fd, writes):
            monkeypatch.setattr(handed.sink, "fd", fd)
            yield LoggerAndLines(handed, writes)
