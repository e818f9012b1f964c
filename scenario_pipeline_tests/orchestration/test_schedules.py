"""Schedules: which date a tick asks for, and when it is skipped; evaluated at fixed times, without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    DefaultScheduleStatus,
    RunRequest,
    ScheduleDefinition,
    SkipReason,
    build_schedule_context,
)
from dagster._utils.schedules import schedule_execution_time_iterator

from scenario_pipeline.defs.job import JOB_NAME
from scenario_pipeline.scenarios import registry
from scenario_pipeline_tests.support.definitions import definitions

OSLO = ZoneInfo("Europe/Oslo")
NOW = datetime(2026, 3, 29, 12, 0, tzinfo=OSLO)
ALL = "scenario_scheduler_schedule"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


def tick(instance: DagsterInstance, name: str = ALL, moment: datetime = NOW) -> RunRequest | SkipReason:
    context = build_schedule_context(
        instance=instance, scheduled_execution_time=moment, repository_def=definitions().get_repository_def()
    )
    data = definitions().resolve_schedule_def(name).evaluate_tick(context)
    if not data.run_requests:
        return SkipReason(data.skip_message)
    [request] = data.run_requests
    return request


def begin(instance: DagsterInstance, **config: Any) -> str:
    """Record a run of the job that has started and not ended."""
    run = instance.create_run_for_job(
        definitions().resolve_job_def(JOB_NAME),
        run_config={"ops": {"fetch_active_mentors": {"config": {"evaluation_date": NOW.date().isoformat()} | config}}},
        status=DagsterRunStatus.STARTED,
    )
    return run.run_id


def test_there_is_one_schedule_for_all_scenarios_and_one_for_each_built_in() -> None:
    """The list is pinned: a schedule that vanishes is noticed by nobody until mentors hear nothing."""
    found = {
        s.name: (s.cron_schedule, s.execution_timezone, s.default_status is DefaultScheduleStatus.RUNNING)
        for s in definitions().schedules or []
        if isinstance(s, ScheduleDefinition)
    }
    assert found == {
        ALL: ("0 * * * *", "Europe/Oslo", True),
        "inactivity_schedule": ("10 6 * * *", "Europe/Oslo", False),
        "milestone_schedule": ("20 * * * *", "Europe/Oslo", False),
        "certification_expiry_schedule": ("30 6 * * *", "Europe/Oslo", False),
    }
    assert {name.removesuffix("_schedule") for name in found} - {"scenario_scheduler"} == set(registry())


@pytest.mark.parametrize(
    ("moment", "partition"),
    [
        (datetime(2026, 8, 1, 0, 0, tzinfo=OSLO), "2026-08-01"),
        (datetime(2026, 7, 31, 23, 0, tzinfo=OSLO), "2026-07-31"),
        (datetime(2026, 7, 31, 22, 0, tzinfo=UTC), "2026-08-01"),
        (datetime(2028, 2, 29, 6, 0, tzinfo=OSLO), "2028-02-29"),
    ],
)
def test_a_tick_asks_for_the_date_of_its_own_moment(
    instance: DagsterInstance, moment: datetime, partition: str
) -> None:
    """Midnight in Oslo decides, whatever zone the daemon runs in."""
    request = tick(instance, moment=moment)
    assert isinstance(request, RunRequest)
    assert request.partition_key == partition


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2028-02-29", 24)], ids=["spring", "autumn", "leap day"]
)
def test_the_hourly_schedule_ticks_once_an_hour_on_days_of_any_length(
    instance: DagsterInstance, day: str, hours: int
) -> None:
    """A day of 23 or 25 hours has as many ticks: none missing, none doubled."""
    start = datetime.fromisoformat(day).replace(tzinfo=OSLO)
    end = (start + timedelta(days=1)).astimezone(UTC)
    schedule = definitions().resolve_schedule_def(ALL)
    assert isinstance(schedule.cron_schedule, str)
    moments = schedule_execution_time_iterator(start.timestamp(), schedule.cron_schedule, schedule.execution_timezone)
    ticks = list(takewhile(lambda moment: moment < end, (moment.astimezone(UTC) for moment in moments)))
    assert ticks == [start.astimezone(UTC) + timedelta(hours=n) for n in range(hours)]
    requests = [tick(instance, moment=moment) for moment in ticks]
    assert [request.partition_key for request in requests if isinstance(request, RunRequest)] == [day] * hours


def test_a_tick_is_skipped_while_a_run_of_the_same_scenarios_is_in_progress(instance: DagsterInstance) -> None:
    """Two runs over the same mentors are harmless and a waste; the reason names the run to look at."""
    run_id = begin(instance)
    skipped = tick(instance)
    assert isinstance(skipped, SkipReason)
    assert run_id in (skipped.skip_message or "")


def test_a_run_of_other_scenarios_does_not_hold_a_tick_up(instance: DagsterInstance) -> None:
    """Scenarios that are run apart are run apart."""
    begin(instance, scenario_types=["milestone"])
    assert isinstance(tick(instance), RunRequest)
    assert isinstance(tick(instance, "inactivity_schedule"), RunRequest)
    assert isinstance(tick(instance, "milestone_schedule"), SkipReason)


@pytest.mark.parametrize("config", [{"evaluation_date": "2026-07-01"}, {"dispatch_mode": "dry_run"}])
def test_a_backfill_or_a_dry_run_does_not_hold_a_tick_up(instance: DagsterInstance, config: dict[str, str]) -> None:
    """A backfill of thirty dates used to cost the live schedule three ticks of four."""
    begin(instance, **config)
    assert isinstance(tick(instance), RunRequest)


def test_a_run_of_one_organisation_does_not_hold_a_tick_up(instance: DagsterInstance) -> None:
    """Looking at one organisation by hand must not cost the others their hour."""
    begin(instance, organisation_ids=["aaaaaaaa-0000-4000-8000-000000000001"])
    assert isinstance(tick(instance), RunRequest)


def test_a_run_that_was_recorded_and_never_began_holds_no_tick_up_for_long(instance: DagsterInstance) -> None:
    """A command line that is killed while it starts leaves such a record."""
    run = instance.create_run_for_job(definitions().resolve_job_def(JOB_NAME))
    [record] = instance.get_run_records()
    created = record.create_timestamp
    skipped = tick(instance, moment=created + timedelta(seconds=50))
    assert isinstance(skipped, SkipReason)
    assert run.run_id in (skipped.skip_message or "")
    assert isinstance(tick(instance, moment=created + timedelta(seconds=70)), RunRequest)


def test_a_run_whose_process_must_be_dead_does_not_hold_ticks_up_for_ever(instance: DagsterInstance) -> None:
    """A host that crashed leaves its run unfinished in the records; mentors must hear all the same."""
    today = datetime.now(OSLO).date().isoformat()
    begin(instance, time_budget_seconds=30, evaluation_date=today)
    [record] = instance.get_run_records()
    began = record.create_timestamp
    assert isinstance(tick(instance, moment=began + timedelta(seconds=80)), SkipReason)
    assert isinstance(tick(instance, moment=began + timedelta(seconds=100)), RunRequest)


def test_a_schedule_of_one_scenario_asks_for_that_one(instance: DagsterInstance) -> None:
    request = tick(instance, "inactivity_schedule")
    assert isinstance(request, RunRequest)
    assert request.run_config == {"ops": {"fetch_active_mentors": {"config": {"scenario_types": ["inactivity"]}}}}
