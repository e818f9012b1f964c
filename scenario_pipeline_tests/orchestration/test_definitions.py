"""What Dagster shows: nothing without a description, an owner, a kind and a group; the lineage tells the story."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from dagster import (
    AssetKey,
    AssetSpec,
    DagsterInvalidConfigError,
    DagsterRunStatus,
    ScheduleDefinition,
    SensorDefinition,
    TableMetadataValue,
)
from sqlalchemy import Engine

from scenario_pipeline.batch_stats import DISPATCHED, BatchStats
from scenario_pipeline.defs.assets import EVALUATIONS, NOTIFICATIONS
from scenario_pipeline.defs.job import JOB_NAME
from scenario_pipeline.defs.run_configuration import RunConfiguration
from scenario_pipeline.defs.run_metadata import MAX_TABLE_ROWS, outcome_table
from scenario_pipeline.errors import UserError
from scenario_pipeline_tests.support.definitions import definitions
from scenario_pipeline_tests.support.job_runs import RunJob
from scenario_pipeline_tests.support.people import D, mentor_id, ten_mentors
from scenario_pipeline_tests.support.triggers import lose_the_connection_for

SOURCES = {"organisations", "peer_mentors", "mentor_activities", "mentor_certifications", "scenario_evaluation_config"}


def specs() -> dict[AssetKey, AssetSpec]:
    return {spec.key: spec for spec in definitions().resolve_all_asset_specs()}


def test_the_lineage_leads_from_the_tables_read_to_the_table_written() -> None:
    """A new colleague should see on one page what touches what."""
    upstream = {key.to_user_string(): {dep.asset_key for dep in spec.deps} for key, spec in specs().items()}
    assert upstream == {
        **{name: set() for name in SOURCES},
        "mentor_scenario_evaluations": {AssetKey(name) for name in SOURCES},
        "scenario_notifications": {EVALUATIONS},
    }


def test_every_asset_has_a_description_an_owner_a_kind_and_a_group() -> None:
    for key, spec in specs().items():
        assert spec.description, key
        assert list(spec.owners) == ["team:peer-mentoring"], key
        assert "postgres" in spec.kinds, key
        assert spec.group_name in ("source_data", "scenario_pipeline"), key


def test_the_columns_of_mentors_say_which_are_personal() -> None:
    [columns] = [specs()[AssetKey("peer_mentors")].metadata["dagster/column_schema"]]
    personal = {column.name for column in columns.columns if column.description}
    assert personal == {"full_name", "email", "phone"}
    assert specs()[NOTIFICATIONS].metadata["dagster/table_name"] == "scenario.scenario_notifications"


def test_jobs_schedules_sensors_checks_and_ops_are_described_and_owned() -> None:
    found: dict[str, Any] = {s.name: s for s in definitions().sensors or [] if isinstance(s, SensorDefinition)}
    found |= {s.name: s for s in definitions().schedules or [] if isinstance(s, ScheduleDefinition)}
    job = definitions().resolve_job_def(JOB_NAME)
    found |= {"job": job, **{node.name: node.definition for node in job.nodes}}
    found |= {spec.name: spec for checks in definitions().asset_checks or [] for spec in checks.check_specs}
    assert len(found) == 6 + 4 + 1 + 3 + 3
    for name, definition in found.items():
        assert definition.description, name
        # A run-status sensor takes no owner.
        without = ("close_dead_invocations", "close_cancelled_invocations", "continue_partial_runs")
        if hasattr(definition, "owners") and name not in without:
            assert list(definition.owners) == ["team:peer-mentoring"], name


def test_columns_have_the_types_that_postgres_names() -> None:
    """Somebody who writes SQL after the catalogue looks for uuid, and finds char(32)."""
    shown: dict[str, dict[str, str]] = {
        key.to_user_string(): {c.name: c.type for c in spec.metadata["dagster/column_schema"].columns}
        for key, spec in specs().items()
        if "dagster/column_schema" in spec.metadata
    }
    configuration = shown["scenario_evaluation_config"]
    assert [configuration[name] for name in ("organisation_id", "thresholds", "last_evaluated_at")] == [
        "uuid",
        "integer[]",
        "timestamp with time zone",
    ]
    assert shown["mentor_activities"] == {
        "id": "bigint",
        "user_id": "uuid",
        "activity_type": "text",
        "activity_date": "date",
    }


def test_every_field_of_the_launch_form_is_described() -> None:
    for name, field in RunConfiguration.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"page_size": 0}, "page_size: Input should be greater than or equal to 1."),
        ({"page_size": 100_001}, "page_size: Input should be less than or equal to 100000."),
        ({"time_budget_seconds": 0}, "time_budget_seconds: Input should be greater than 0."),
        ({"time_budget_seconds": float("nan")}, "time_budget_seconds: Input should be less than or equal to 86400."),
        ({"evaluation_date": "2026-02-29"}, "evaluation_date: must be a date that exists, written YYYY-MM-DD."),
        ({"evaluation_date": "2026-W48-2"}, "evaluation_date: must be a date that exists, written YYYY-MM-DD."),
        ({"evaluation_date": "20260228"}, "evaluation_date: must be a date that exists, written YYYY-MM-DD."),
        ({"organisation_ids": ["x"]}, "organisation_ids: must be ids of organisations, which are UUIDs."),
        (
            {"page_size": 0, "evaluation_date": ""},
            "evaluation_date: must be a date that exists, written YYYY-MM-DD; "
            "page_size: Input should be greater than or equal to 1.",
        ),
    ],
)
def test_a_value_out_of_bounds_is_told_in_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as told:
        RunConfiguration.checked(values)
    assert str(told.value) == sentence


def test_no_field_takes_its_value_from_a_variable(run_job: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster quotes what it refuses: anyone who may launch a run could read the server's secrets."""
    monkeypatch.setenv("CANARY_SECRET", "s3cret")
    for name in RunConfiguration.model_fields:
        with pytest.raises(DagsterInvalidConfigError) as told:
            run_job(**{name: {"env": "CANARY_SECRET"}})
        assert "s3cret" not in str(told.value)


def test_a_date_that_contradicts_the_partition_is_refused(run_job: RunJob, engine: Engine) -> None:
    """Otherwise one date would be evaluated and another one marked as done."""
    ten_mentors(engine)
    run = run_job(partition=D, evaluation_date="2026-01-01")
    assert run.entries == []
    assert run.status is DagsterRunStatus.FAILURE
    assert "evaluation_date is not the date of the partition: omit it." in run.stderr
    assert run_job(partition=D, evaluation_date=D.isoformat()).tags["outcome"] == "completed"


def test_a_run_shows_its_totals_by_scenario_and_organisation(run_job: RunJob, engine: Engine) -> None:
    """ "3 dispatched" is not enough for somebody who looks after one organisation of five."""
    ten_mentors(engine)
    run = run_job(evaluation_date=D.isoformat(), dispatch_mode="live")
    [metadata] = [
        event.step_output_data.metadata
        for event in run.result.all_events
        if event.is_successful_output and event.step_key == "summarize_run"
    ]
    table = metadata["outcomes"]
    assert isinstance(table, TableMetadataValue)
    assert [record.data for record in table.records] == [
        {"scenario": "inactivity", "organisation": "Kreftforeningen", "dispatched": 3, "opted_out": 1, "duplicate": 0,
         "cooldown": 0}]  # fmt: skip
    assert [metadata[f"suppressed_{reason}"].value for reason in ("opted_out", "duplicate", "cooldown")] == [1, 0, 0]
    assert [metadata[f"dispatched_{name}"].value for name in ("inactivity", "milestone")] == [3, 0]
    assert metadata["error_rate"].value == 0.0


def test_a_table_of_very_many_organisations_is_cut_and_still_adds_up() -> None:
    """The metadata of a run is one row of Dagster's event log."""
    outcomes = {(f"organisation {n:04d}", "milestone", DISPATCHED): n for n in range(1, MAX_TABLE_ROWS + 51)}
    records = [record.data for record in outcome_table(BatchStats(outcomes=outcomes), {})]
    assert len(records) == MAX_TABLE_ROWS + 1
    assert sum(int(str(record["dispatched"])) for record in records) == sum(outcomes.values())
    assert (records[-1]["organisation"], records[-1]["dispatched"]) == ("50 more rows", sum(range(1, 51)))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Kreftforeningen", "Kreftforeningen"),
        ("Håp 北京 🌱", "Håp 北京 🌱"),
        ("x" * 140_000, "x" * 199 + "\N{HORIZONTAL ELLIPSIS}"),
        ("x" * 200, "x" * 200),
        ("one\u2028two\u2029three\r\nfour\x1b[31m\x85", "one two three  four [31m"),
        ("\u2028", "unknown"),
        ("", "unknown"),
    ],
    ids=["a name", "other letters", "140,000 characters", "200 characters", "lines", "a separator", "nothing"],
)
def test_an_organisations_name_is_shown_in_one_short_line(name: str, shown: str) -> None:
    """A table of the user's own may call an organisation anything, and Dagster keeps it with each run."""
    [record] = outcome_table(BatchStats(outcomes={("an id", "milestone", DISPATCHED): 1}), {"an id": name})
    assert record.data["organisation"] == shown


@pytest.mark.parametrize("outcome", ["completed", "partial", "failed"])
def test_runs_can_be_filtered_by_what_became_of_them(run_job: RunJob, engine: Engine, outcome: str) -> None:
    """Somebody looks for the runs that failed last month."""
    ten_mentors(engine)
    config: dict[str, Any] = {"partial": {"page_size": 4, "time_budget_seconds": 1e-6}}.get(outcome, {})
    if outcome == "failed":
        lose_the_connection_for(engine, mentor_id(3))
    tags = run_job(partition=D, dispatch_mode="live", **config).tags
    assert (tags["outcome"], tags["evaluation_date"], tags["triggered_by"]) == (outcome, D.isoformat(), "manual")


def test_a_run_that_fails_before_its_first_page_is_tagged_as_well(
    run_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCENARIO_DATABASE_URL", "postgresql://127.0.0.1:1/nowhere")
    assert run_job(partition=D).tags["outcome"] == "failed"


def test_a_tag_that_names_no_trigger_is_not_believed(run_job: RunJob, engine: Engine) -> None:
    """Anybody can type a tag into the Launchpad."""
    run = run_job(partition=D, tags={"scenario/triggered_by": "robert'); --"})
    assert run.entries[0]["triggered_by"] == "manual"
    assert date.fromisoformat(run.tags["evaluation_date"]) == D
