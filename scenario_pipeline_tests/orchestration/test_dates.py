"""What people see of a date, of a run and of a source: numbers that cannot be taken for one another."""

from __future__ import annotations

from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance, TableMetadataValue, materialize
from sqlalchemy import Engine, text

from scenario_pipeline.defs.assets import EVALUATIONS, NOTIFICATIONS
from scenario_pipeline.defs.sources import SMALL_TABLE_BYTES, observations
from scenario_pipeline.storage import database
from scenario_pipeline_tests.support.definitions import evaluated_asset, op_resources
from scenario_pipeline_tests.support.job_runs import JobRun, RunJob
from scenario_pipeline_tests.support.people import D, mentor_id, ten_mentors
from scenario_pipeline_tests.support.triggers import refuse_notifications_of


def of_run(run: JobRun) -> dict[str, Any]:
    """Return the metadata that the last step of a run shows."""
    [metadata] = [
        event.step_output_data.metadata
        for event in run.result.all_events
        if event.is_successful_output and event.step_key == "summarize_run"
    ]
    return {name: value.value for name, value in metadata.items()}


def of_date(instance: DagsterInstance, key: AssetKey) -> dict[str, Any]:
    """Return what the asset's partition D shows: the metadata of its latest materialisation."""
    [record] = instance.fetch_materializations(key, limit=1).records
    assert record.asset_materialization is not None
    assert record.partition_key == D.isoformat()
    return {name: value.value for name, value in record.asset_materialization.metadata.items()}


DATE = {
    "notifications": 3,
    "notifications_inactivity": 3,
    "notifications_milestone": 0,
    "notifications_certification_expiry": 0,
}


def test_a_date_evaluated_twice_shows_what_was_sent_and_the_second_run_its_own_nothing(
    run_job: RunJob, engine: Engine
) -> None:
    """Every hour but the first would plot the day as a day on which nobody was notified."""
    ten_mentors(engine)
    run_job(partition=D, dispatch_mode="live")
    again = run_job(partition=D, dispatch_mode="live")
    assert (of_run(again)["total_dispatched"], of_run(again)["suppressed_duplicate"]) == (0, 3)
    assert of_date(again.instance, NOTIFICATIONS) == DATE
    shown = of_date(again.instance, EVALUATIONS)
    assert {name: shown[name] for name in DATE} == DATE
    assert (shown["runs"], shown["total_evaluated"], shown["this_run"]["total_dispatched"]) == (2, 10, 0)
    assert "total_dispatched" not in shown


def test_a_run_of_the_asset_shows_the_same_numbers_of_the_date(run_job: RunJob, engine: Engine) -> None:
    """Which button was pressed is no property of a date; a dry run afterwards takes nothing away from it."""
    ten_mentors(engine)
    instance = run_job(partition=D, dispatch_mode="live").instance
    for mode, runs in (("live", 2), ("dry_run", 3)):
        result = materialize(
            [evaluated_asset()],
            partition_key=D.isoformat(),
            instance=instance,
            run_config={
                "ops": {"scheduler_graph": {"ops": {"fetch_active_mentors": {"config": {"dispatch_mode": mode}}}}}
            },
            resources=op_resources(),
        )
        assert result.success
        shown = of_date(instance, EVALUATIONS)
        assert {name: shown[name] for name in DATE} == DATE
        assert (shown["runs"], shown["dispatch_mode"]) == (runs, mode)
    assert of_date(instance, NOTIFICATIONS) == DATE


def test_a_dry_run_shows_no_number_that_could_be_plotted_as_sent(run_job: RunJob, engine: Engine) -> None:
    """A backfill of last year looks like a year of notifications in the plot of `total_dispatched`."""
    ten_mentors(engine)
    run = run_job(partition=D, dispatch_mode="dry_run")
    shown = of_run(run)
    assert (shown["would_dispatch"], shown["would_dispatch_inactivity"], shown["would_suppress_opted_out"]) == (3, 3, 1)
    assert shown["would_dispatch_by_scenario"] == {"inactivity": 3}
    assert [name for name in shown if "dispatched" in name or "suppressed" in name] == []
    [row] = [record.data for record in shown["outcomes"].records]
    assert row["would_dispatch"] == 3
    assert "dispatched" not in row
    assert of_date(run.instance, EVALUATIONS)["notifications"] == 0


@pytest.mark.parametrize(("mode", "dispatched"), [("live", "2"), ("dry_run", "0")])
def test_runs_can_be_filtered_by_mode_dispatched_and_errors(
    run_job: RunJob, engine: Engine, mode: str, dispatched: str
) -> None:
    """Somebody looks for the run that sent what should not have been sent."""
    ten_mentors(engine)
    refuse_notifications_of(engine, [mentor_id(2)])
    tags = run_job(partition=D, dispatch_mode=mode).tags
    assert {name: tags[name] for name in ("dispatch_mode", "dispatched", "errors")} == {
        "dispatch_mode": mode,
        "dispatched": dispatched,
        "errors": "1",
    }


def test_mentors_with_an_error_are_a_table_of_the_run(run_job: RunJob, engine: Engine) -> None:
    """ "1 error" sends people into the log to find out whose it was."""
    ten_mentors(engine)
    refuse_notifications_of(engine, [mentor_id(2)])
    run = run_job(partition=D, dispatch_mode="live")
    [entry] = [entry for entry in run.entries if entry["event"] == "mentor_evaluation_error"]
    [metadata] = [
        event.step_output_data.metadata
        for event in run.result.all_events
        if event.is_successful_output and event.step_key == "summarize_run"
    ]
    table = metadata["errors"]
    assert isinstance(table, TableMetadataValue)
    assert [record.data for record in table.records] == [
        {name: entry[name] for name in ("peer_mentor_id", "error_type", "error_message")}
    ]
    assert entry["peer_mentor_id"] == mentor_id(2)


def observed(instance: DagsterInstance, table: str) -> dict[str, Any]:
    records = instance.fetch_observations(AssetKey(table), limit=10).records
    found = [record.asset_observation for record in records if record.asset_observation]
    assert len(found) == 1
    return {name: value.value for name, value in found[0].metadata.items()}


def test_a_run_says_when_the_sources_were_seen_and_how_many_rows_they_had(run_job: RunJob, engine: Engine) -> None:
    """An import that stopped weeks ago shows in nothing else: everybody is merely inactive."""
    ten_mentors(engine)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
        newest, rows = connection.execute(
            text("SELECT max(activity_date)::text, count(*) FROM scenario.mentor_activities")
        ).one()
    run = run_job(partition=D, dispatch_mode="live")
    assert observed(run.instance, "mentor_activities") == {
        "rows_estimated": rows,
        "read_from": "scenario.mentor_activities",
        "newest_activity_date": newest,
    }
    assert observed(run.instance, "organisations")["rows_estimated"] == 1
    assert observed(run.instance, "scenario_evaluation_config")["rows_estimated"] >= 3


def test_a_large_table_without_an_index_on_its_date_is_not_read_for_an_observation(
    engine: Engine, scheduler_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a run means every hour: millions of activities must not be scanned to say that there are many."""
    ten_mentors(engine)
    monkeypatch.setattr("scenario_pipeline.defs.sources.SMALL_TABLE_BYTES", 0)
    assert SMALL_TABLE_BYTES > 0
    as_scheduler = database.connect(scheduler_url)
    try:
        assert "newest_activity_date" not in seen(as_scheduler, "mentor_activities")
        with engine.begin() as connection:
            connection.execute(text("CREATE INDEX ON scenario.mentor_activities (activity_date)"))
        assert "newest_activity_date" in seen(as_scheduler, "mentor_activities")
    finally:
        as_scheduler.dispose()


def test_a_view_over_a_table_of_ones_own_is_followed_to_it(engine: Engine, scheduler_url: str) -> None:
    """The bundled table is empty there, and "0 activities" would be false."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE public.visits AS SELECT * FROM scenario.mentor_activities"))
        connection.execute(text("ALTER TABLE public.visits OWNER TO scenario_owner"))
        connection.execute(text("GRANT SELECT ON public.visits TO scenario_scheduler"))
        connection.execute(
            text(
                "CREATE OR REPLACE VIEW scenario.source_activities WITH (security_invoker = true) AS "
                "SELECT user_id, activity_type, activity_date FROM public.visits"
            )
        )
        connection.execute(text("ANALYZE public.visits"))
        rows = connection.execute(text("SELECT count(*) FROM public.visits")).scalar_one()
    as_scheduler = database.connect(scheduler_url)
    try:
        shown = seen(as_scheduler, "mentor_activities")
    finally:
        as_scheduler.dispose()
    assert (shown["read_from"], shown["rows_estimated"]) == ("public.visits", rows)


def seen(engine: Engine, table: str) -> dict[str, Any]:
    [found] = [
        observation for observation in observations(engine, lambda: 5.0) if observation.asset_key == AssetKey(table)
    ]
    return {name: value.value for name, value in found.metadata.items()}
