"""Sensors that launch runs: partial runs are continued, and requests in SQL become one run each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from dagster import (
    AssetKey,
    DagsterEvent,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultSensorStatus,
    EventLogEntry,
    RunRequest,
    SensorDefinition,
    build_sensor_context,
)
from dagster._core.events import EngineEventData
from sqlalchemy import Engine, text

from scenario_pipeline.defs.assets import EVALUATIONS
from scenario_pipeline.defs.job import JOB_NAME
from scenario_pipeline.defs.liveness import run_configuration_of
from scenario_pipeline.defs.sensors import close_overdue_invocations, continuation_of, lost_runs
from scenario_pipeline.log.logger import utc_now
from scenario_pipeline.settings import Settings
from scenario_pipeline_tests.support.definitions import definitions
from scenario_pipeline_tests.support.people import DAY, D, mentor_id, new_invocation_id, organisation_id, ten_mentors
from scenario_pipeline_tests.support.runs import make_request, open_run

Execute = Callable[..., str]


@pytest.fixture
def instance(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    monkeypatch.setenv("SCENARIO_DATABASE_URL", database_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path / "home"))
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture
def execute(instance: DagsterInstance) -> Execute:
    """Executes what a sensor asked for, as the daemon does, and returns the run id."""

    def execute(request: RunRequest) -> str:
        return (
            definitions()
            .resolve_job_def(JOB_NAME)
            .execute_in_process(
                instance=instance,
                run_config=request.run_config,
                partition_key=request.partition_key,
                tags=dict(request.tags),
                raise_on_error=False,
            )
            .run_id
        )

    return execute


def ledger_row(engine: Engine, run_id: str) -> dict[str, Any]:
    statement = "SELECT *, organisation_ids::text[] AS organisations FROM scenario.scheduler_runs"
    with engine.connect() as connection:
        row = connection.execute(text(f"{statement} WHERE invocation_id = :id"), {"id": run_id})
        return dict(row.mappings().one())


def test_the_sensors_that_launch_runs_are_off_until_asked_for() -> None:
    """An upgrade must not begin to launch runs by itself."""
    found = {
        s.name: s.default_status is DefaultSensorStatus.RUNNING
        for s in definitions().sensors or []
        if isinstance(s, SensorDefinition)
    }
    assert found == {
        "close_dead_invocations": True,
        "close_cancelled_invocations": True,
        "fail_lost_runs": True,
        "forget_old_runs": True,
        "continue_partial_runs": False,
        "pg_cron_requests": False,
    }


# continue_partial_runs


def continued(instance: DagsterInstance, run_id: str) -> RunRequest | None:
    """Evaluate the sensor for a run that succeeded."""
    run = instance.get_run_by_id(run_id)
    assert run is not None
    result = continuation_of(run, Settings.from_environment())
    assert result is None or isinstance(result, RunRequest)
    return result


def first(config: dict[str, Any], partition: date | None = D) -> RunRequest:
    return RunRequest(
        run_key="first",
        run_config={"ops": {"fetch_active_mentors": {"config": config}}},
        partition_key=None if partition is None else partition.isoformat(),
    )


def test_a_partial_run_is_continued_for_the_same_date_until_everybody_was_evaluated(
    instance: DagsterInstance, execute: Execute, engine: Engine
) -> None:
    """A backlog after a holiday is worked off within the hour, and then it is over: the chain has an end."""
    ten_mentors(engine)
    # Spent at once: each run evaluates its first page and no more.
    config = {
        "dispatch_mode": "live",
        "page_size": 4,
        "time_budget_seconds": 0.000001,
        "scenario_types": ["inactivity"],
    }
    run_ids = [execute(first(config))]
    requests = []
    while (request := continued(instance, run_ids[-1])) is not None:
        # What happens in between does not move a chain: another date of the same scenarios, all of them.
        execute(first(config | {"time_budget_seconds": 30}, partition=D + DAY))
        requests.append(request)
        run_ids.append(execute(request))
        assert len(run_ids) < 10
    rows = [ledger_row(engine, run_id) for run_id in run_ids]
    assert [(row["status"], row["total_evaluated"]) for row in rows] == [("partial", 4), ("partial", 4), ("partial", 4)]
    assert [row["triggered_by"] for row in rows] == ["manual", "continuation", "continuation"]
    assert {row["evaluation_date"] for row in rows} == {D}
    assert {tuple(row["scenario_types"]) for row in rows} == {("inactivity",)}
    assert [request.partition_key for request in requests] == [D.isoformat()] * 2
    assert len({request.run_key for request in requests}) == 2
    with engine.connect() as connection:
        last_mentors = connection.execute(text("""
            SELECT last_mentor_id::text FROM scenario.scheduler_run_pages
            WHERE invocation_id = ANY (:ids) ORDER BY array_position(:ids, invocation_id)"""),
            {"ids": [UUID(run_id) for run_id in run_ids]})  # fmt: skip
        assert list(last_mentors.scalars()) == [mentor_id(n) for n in (4, 8, 2)]


def test_a_run_without_a_partition_is_continued_for_its_date(
    instance: DagsterInstance, execute: Execute, engine: Engine
) -> None:
    """Over midnight "today" means another date, and "auto" may mean another mode."""
    ten_mentors(engine)
    config = {"evaluation_date": "2023-01-01", "dispatch_mode": "auto", "page_size": 1, "time_budget_seconds": 0.000001}
    request = continued(instance, execute(first(config, partition=None)))
    assert isinstance(request, RunRequest)
    chosen = request.run_config["ops"]["fetch_active_mentors"]["config"]
    assert (request.partition_key, chosen["evaluation_date"]) == (None, "2023-01-01")
    assert chosen["dispatch_mode"] == "dry_run"


def test_what_is_complete_stopped_or_stuck_is_not_continued(
    instance: DagsterInstance, execute: Execute, engine: Engine
) -> None:
    """A run that gets nowhere would be repeated for ever."""
    ten_mentors(engine)
    assert continued(instance, execute(first({"dispatch_mode": "live"}))) is None
    with engine.connect() as other:
        other.execute(text("LOCK TABLE scenario.mentor_activities IN ACCESS EXCLUSIVE MODE"))
        stuck = execute(first({"dispatch_mode": "live", "time_budget_seconds": 0.2}))
    assert ledger_row(engine, stuck)["status"] == "partial"
    assert continued(instance, stuck) is None


# pg_cron_requests


def ask(url: str, arguments: str = "") -> str:
    """Call the function as a clock does; return the id of the request."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(f"SELECT scenario.request_scheduler_run({arguments})::text").fetchone()
    assert row is not None
    return str(row[0])


def tick(instance: DagsterInstance) -> list[RunRequest]:
    """Evaluate the sensor once."""
    context = build_sensor_context(instance=instance, repository_def=definitions().get_repository_def())
    return list(definitions().resolve_sensor_def("pg_cron_requests").evaluate_tick(context).run_requests or [])


def outcome(engine: Engine, request_id: str) -> tuple[str | None, str | None]:
    with engine.connect() as connection:
        row = connection.execute(
            text("SELECT invocation_id::text, refusal FROM scenario.scheduler_run_requests WHERE id = :id"),
            {"id": request_id},
        ).one()
    return row[0], row[1]


def test_a_request_becomes_one_run_and_stays_as_a_record(
    instance: DagsterInstance, execute: Execute, engine: Engine, database_url: str
) -> None:
    """The clock asked once: mentors hear once, and later one can see who asked for what."""
    ten_mentors(engine)
    request_id = ask(database_url, f"'{D}', '{{inactivity}}', '{{{organisation_id()}}}', 'live'")
    [request] = tick(instance)
    # Until the run exists the request stays open; Dagster tells by the run key that it is the same.
    [again] = tick(instance)
    assert again.run_key == request.run_key
    run_id = execute(request)
    assert tick(instance) == []
    assert outcome(engine, request_id) == (run_id, None)
    assert tick(instance) == []
    row = ledger_row(engine, run_id)
    assert (row["triggered_by"], row["evaluation_date"], row["dispatch_mode"]) == ("pg_cron", D, "live")
    assert (row["scenario_types"], row["organisations"]) == (["inactivity"], [organisation_id()])
    assert row["total_dispatched"] == 3


def test_each_of_many_requests_made_at_once_has_its_own_run(
    instance: DagsterInstance, engine: Engine, database_url: str
) -> None:
    """Clocks that strike together for different dates are as many requests, however their transactions end."""
    threads = [threading.Thread(target=ask, args=(database_url, f"'2026-08-0{day}'")) for day in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    requests = tick(instance)
    assert len({request.run_key for request in requests}) == 8
    assert len({request.tags["scenario/request_id"] for request in requests}) == 8


def test_a_request_without_a_date_means_the_date_on_which_it_was_made(
    instance: DagsterInstance, engine: Engine, database_url: str
) -> None:
    """The daemon may be down over midnight; the clock's entry is about its own day."""
    request_id = ask(database_url)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE scenario.scheduler_run_requests SET requested_at = requested_at - interval '2 days'")
        )
    [request] = tick(instance)
    settings = Settings.from_environment()
    assert request.partition_key == settings.today(utc_now() - timedelta(days=2)).isoformat()
    assert request.tags["scenario/request_id"] == request_id


def test_a_date_without_a_partition_is_evaluated_all_the_same(
    instance: DagsterInstance, execute: Execute, engine: Engine, database_url: str
) -> None:
    """Partitions begin in 2024; the history of an organisation may not."""
    ask(database_url, "'2019-05-05'")
    [request] = tick(instance)
    assert request.partition_key is None
    assert ledger_row(engine, execute(request))["evaluation_date"] == date(2019, 5, 5)


def test_a_scenario_that_is_gone_since_is_refused_and_does_not_hold_the_others_up(
    instance: DagsterInstance, engine: Engine, database_url: str
) -> None:
    """An uninstalled package must not stop the queue for good."""
    with engine.begin() as connection:
        connection.execute(text("""INSERT INTO scenario.scenario_evaluation_config
            (scenario_type, thresholds, lookback_days, cooldown_days)
            VALUES ('anniversary', '{365}', 7, 1)"""))  # fmt: skip
    gone = ask(database_url, "scenario_types => '{anniversary}'")
    ask(database_url)
    assert len(tick(instance)) == 1
    invocation_id, refusal = outcome(engine, gone)
    assert invocation_id is None
    assert "anniversary" in (refusal or "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("scenario_types => '{inactive,milestone}'", "not a scenario: inactive"),
        ("scenario_types => '{milestone,NULL}'", "not a scenario: NULL"),
        ("scenario_types => NULL", "must not be NULL"),
        (f"organisation_ids => '{{{organisation_id(7)}}}'", f"not an organisation: {organisation_id(7)}"),
        ("dispatch_mode => 'sometimes'", "dispatch_mode must be auto, live or dry_run"),
        ("evaluation_date => 'infinity'", "evaluation_date must be from 0001-01-01"),
        ("evaluation_date => '0001-01-01 BC'", "evaluation_date must be from 0001-01-01"),
        ("evaluation_date => '20000-01-01'", "evaluation_date must be from 0001-01-01 to 9999-12-31"),
        ("scenario_types => '{{inactivity,milestone}}'", "arrays of one dimension"),
        ("evaluation_date => '2026-02-30'", "date/time field value out of range"),
    ],
)
def test_a_request_that_cannot_work_is_refused_where_it_is_made(
    database_url: str, engine: Engine, arguments: str, sentence: str
) -> None:
    """pg_cron shows the sentence in its own table; a request that fails a minute later would be seen by nobody."""
    with pytest.raises(psycopg.Error, match=sentence):
        ask(database_url, arguments)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM scenario.scheduler_run_requests")).scalar_one() == 0


def test_a_clock_needs_no_right_but_to_call_the_function(database_url: str, engine: Engine) -> None:
    """And nobody may call it who was not allowed to; a caller's own temporary tables do not fool it."""
    role = f"clock_{new_invocation_id().replace('-', '')}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role}")
        connection.execute(f"GRANT USAGE ON SCHEMA scenario TO {role}")
        try:
            connection.execute(f"SET ROLE {role}")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT scenario.request_scheduler_run()")
            connection.execute("RESET ROLE")
            connection.execute(f"GRANT EXECUTE ON FUNCTION scenario.request_scheduler_run TO {role}")
            connection.execute(f"SET ROLE {role}")
            connection.execute("CREATE TEMP TABLE scheduler_run_requests (id int)")
            connection.execute("SELECT scenario.request_scheduler_run()")
            connection.execute("RESET ROLE")
        finally:
            connection.execute("RESET ROLE")
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM scenario.scheduler_run_requests")).scalar_one() == 1


# fail_lost_runs


def test_a_run_marked_as_canceled_while_its_process_was_dead_is_closed(
    instance: DagsterInstance, engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    """Somebody presses "force termination" on a run whose host is gone: its log has no end otherwise."""
    ten_mentors(engine)
    job = definitions().resolve_job_def(JOB_NAME)
    lost = instance.create_run_for_job(job, status=DagsterRunStatus.STARTED)
    request = make_request(time_budget_seconds=1)
    with engine.begin() as connection:
        open_run(connection, request, lost.run_id)
    instance.report_run_canceled(lost)
    with engine.begin() as connection:
        connection.execute(text("UPDATE scenario.scheduler_runs SET started_at = started_at - interval '62 seconds'"))
    now = utc_now()
    close_overdue_invocations(instance, now + timedelta(seconds=55), Settings.from_environment())
    assert ledger_row(engine, lost.run_id)["status"] == "running"  # its process may be about to close it
    capfd.readouterr()
    close_overdue_invocations(instance, now + timedelta(seconds=65), Settings.from_environment())
    close_overdue_invocations(instance, now + timedelta(seconds=65), Settings.from_environment())
    assert capfd.readouterr().out.count('"event":"scheduler_run_completed"') == 1
    assert ledger_row(engine, lost.run_id)["status"] == "failed"
    closed = instance.get_run_by_id(lost.run_id)
    assert closed is not None
    assert (closed.tags["outcome"], closed.tags["triggered_by"]) == ("failed", "manual")
    assert closed.tags["evaluation_date"] == D.isoformat()


def test_a_run_that_goes_on_past_its_budget_is_not_declared_dead(instance: DagsterInstance) -> None:
    """Thousands of small pages cost Dagster minutes, also those that are left over: the process lives."""
    config = {"ops": {"fetch_active_mentors": {"config": {"time_budget_seconds": 1}}}}
    job = definitions().resolve_job_def(JOB_NAME)
    run = instance.create_run_for_job(job, run_config=config, status=DagsterRunStatus.STARTED)
    began = utc_now()
    assert lost_runs(instance, began + timedelta(seconds=55), Settings.from_environment()) == []
    assert [
        lost.run_id for lost in lost_runs(instance, began + timedelta(seconds=65), Settings.from_environment())
    ] == [run.run_id]
    of_a_step = DagsterEvent("ENGINE_EVENT", run.job_name, event_specific_data=EngineEventData())
    moment = (began + timedelta(seconds=300)).timestamp()
    entry: Any = EventLogEntry
    instance.handle_new_event(entry(None, 20, "", run.run_id, moment, None, run.job_name, of_a_step))
    assert lost_runs(instance, began + timedelta(seconds=355), Settings.from_environment()) == []
    assert [
        lost.run_id for lost in lost_runs(instance, began + timedelta(seconds=365), Settings.from_environment())
    ] == [run.run_id]


def test_a_run_of_somebody_elses_asset_is_none_of_ours(instance: DagsterInstance) -> None:
    """One instance may hold other code locations, whose runs take as long as they take."""
    config = {"ops": {"scheduler_graph": {"ops": {"fetch_active_mentors": {"config": {"time_budget_seconds": 5}}}}}}
    for key, expected in ((EVALUATIONS, {"time_budget_seconds": 5}), (AssetKey("theirs"), None)):
        run = DagsterRun("__ASSET_JOB", asset_selection=frozenset({key}), run_config=config)
        assert run_configuration_of(run) == expected
