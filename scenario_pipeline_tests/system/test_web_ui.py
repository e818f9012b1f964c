"""Dagster's web UI in a real browser and its GraphQL API, over `scenario-pipeline up`."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from dagster import DagsterInstance
from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from scenario_pipeline.defs.assets import EVALUATIONS
from scenario_pipeline.storage import database
from scenario_pipeline_tests.support.invariants import check_invariants
from scenario_pipeline_tests.support.stranger import stranger_accepts
from scenario_pipeline_tests.system.conftest import Up, wait_until

pytestmark = pytest.mark.system

CLOSED = ["scheduler_run_started", "scheduler_run_completed"]
Save = Callable[[str], None]


class Page:
    """What a person does in the browser: look until it is there, click, type."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def text(self) -> str:
        return str(self.browser.find_element(By.TAG_NAME, "body").text)

    def see(self, *words: str, seconds: float = 60) -> None:
        def shown() -> bool:
            try:
                text = self.text()
            except StaleElementReferenceException:
                return False
            missing[:] = [word for word in words if word not in text]
            return not missing

        missing: list[str] = []
        try:
            wait_until(shown, "", seconds)
        except AssertionError:
            pytest.fail(f"{self.browser.current_url} does not show {missing} but {self.text()}")

    def click(self, xpath: str, seconds: float = 60) -> None:
        def clicked() -> bool:
            try:
                shown = [e for e in self.browser.find_elements(By.XPATH, xpath) if e.is_displayed() and e.is_enabled()]
                for element in shown[:1]:
                    element.click()
            except (ElementClickInterceptedException, StaleElementReferenceException):
                return False
            return bool(shown)

        wait_until(clicked, f"{xpath} can be clicked", seconds)

    def replace_text(self, css: str, text: str) -> None:
        self.see_element(css)
        field = self.browser.find_element(By.CSS_SELECTOR, css)
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)

    def see_element(self, css: str) -> None:
        wait_until(lambda: self.browser.find_elements(By.CSS_SELECTOR, css), f"{css} is shown", 60)


@pytest.fixture
def page(browser: webdriver.Chrome) -> Page:
    return Page(browser)


def run_on_screen(page: Page) -> str:
    """Return the id of the run whose page is shown."""
    found: list[str] = []

    def shown() -> bool:
        found[:] = re.findall(r"/runs/([0-9a-f-]{36})", page.browser.current_url)
        return bool(found)

    wait_until(shown, "the page of a run is shown", 60)
    return found[0]


def totals_of(up: Up, run_id: str) -> tuple[Any, ...]:
    """Return what an invocation came to, from the ledger."""
    with up.connect() as connection:
        row: tuple[Any, ...] | None = connection.execute(
            """SELECT evaluation_date, triggered_by, dispatch_mode, status, total_active_mentors, total_evaluated,
            total_dispatched, total_suppressed FROM scenario.scheduler_runs WHERE invocation_id = %s""",
            [run_id],
        ).fetchone()
    assert row is not None
    return row


def test_a_run_is_launched_from_the_launchpad_and_shows_its_pages_and_totals(
    up: Up, page: Page, screenshot: Save
) -> None:
    """What a volunteer coordinator does on the first day: press the button and look what happened."""
    page.browser.get(f"{up.url}/locations/scenario_pipeline/jobs/scenario_scheduler/playground")
    page.see("fetch_active_mentors:", "dispatch_mode: auto", "No errors")
    page.click("//button[contains(., 'Launch Run')]")
    page.click("//button[contains(., 'Confirm')]")
    run_id = run_on_screen(page)
    up.wait_for(run_id, "SUCCESS")
    pages = [f"evaluate_mentor[page_0000{number}]" for number in (1, 2, 3)]
    page.see("fetch_active_mentors", *pages, "summarize_run", "Succeeded (5)")
    page.browser.refresh()
    page.see("Succeeded (5)", "3 checks", "Process for run exited")
    # The chart draws the pages a moment after the list is there.
    wait_until(lambda: "evaluate_mentor[?]" not in page.text().split("\n"), "the pages are drawn")
    screenshot("run")
    page.click("//button[contains(., 'View tags and config')]")
    page.see("outcome: completed", "triggered_by: manual", "evaluation_date: ")
    page.browser.get(f"{up.url}/runs/{run_id}?logs=step%3Asummarize_run")
    # Of what is written with metadata the step's own output comes last.
    page.see("Yielded output", "succeeded for materialization")
    page.click("(//*[text()='View full message'])[last()]")
    page.see("total_active_mentors", "error_rate", "suppressed_duplicate", "Demo Organisation North", "live")
    page.browser.get(f"{up.url}/runs/{run_id}?logs=step%3Asummarize_run")
    page.see("Yielded output")
    assert [entry["event"] for entry in up.logged(run_id)] == CLOSED
    # The link among the metadata leads to the events.
    link = page.browser.find_element(By.XPATH, "//a[contains(@href, 'logType=stdout')]").get_attribute("href")
    page.browser.get(str(link))
    page.see('"event":"scheduler_run_started"', '"event":"scheduler_run_completed"')


def test_an_asset_backfill_over_three_dates_finishes_with_its_checks_passed(
    up: Up, instance: DagsterInstance, page: Page, screenshot: Save
) -> None:
    """Somebody asks what would have been sent a week ago: three dates, evaluated and not sent."""
    page.browser.get(f"{up.url}/assets/mentor_scenario_evaluations")
    page.click("//button[contains(., 'Materialize')]")
    newest = datetime.now(UTC).date() - timedelta(days=7)
    dates = [(newest - timedelta(days=n)).isoformat() for n in (2, 1, 0)]
    page.replace_text("[class*=ialog] input[type=text]", f"[{dates[0]}...{dates[-1]}]")
    page.see("3 partitions")
    page.click("//button[contains(., 'Launch backfill')]")
    wait_until(
        lambda: set(dates) <= instance.get_materialized_partitions(EVALUATIONS), "the three dates are materialised", 240
    )
    runs = [run for run in instance.get_runs() if run.tags.get("dagster/partition") in dates]
    assert len(runs) == 3
    for run in runs:
        up.wait_for(run.run_id, "SUCCESS")
        evaluation_date, triggered_by, mode, status, active, evaluated, *_ = totals_of(up, run.run_id)
        assert (triggered_by, mode, status) == ("backfill", "dry_run", "completed")
        assert evaluation_date.isoformat() == run.tags["dagster/partition"]
        assert active == evaluated > 0
        assert [entry["event"] for entry in up.logged(run.run_id)] == CLOSED
    page.browser.get(f"{up.url}/runs/b/{runs[0].tags['dagster/backfill']}?tab=partitions")
    page.see("Status\nSucceeded", seconds=120)
    page.browser.get(f"{up.url}/assets/mentor_scenario_evaluations?view=checks")
    page.see("events_match_ledger", "everyone_evaluated", "error_rate", "Succeeded")
    assert "Failed" not in page.text()
    page.browser.get(f"{up.url}/assets/mentor_scenario_evaluations?view=lineage")
    page.see("peer_mentors", "mentor_activities", "scenario_notifications", "3 / 3 Passed")
    screenshot("lineage")


def test_a_run_backfill_from_the_command_line_shows_in_the_same_partitions(up: Up, instance: DagsterInstance) -> None:
    """The job and the asset are two doors to the same room."""
    newest = datetime.now(UTC).date() - timedelta(days=10)
    dates = {(newest - timedelta(days=n)).isoformat() for n in range(10)}
    up.dagster("job", "backfill", "-w", "workspace.yaml", "-j", "scenario_scheduler", "--noprompt",
               "--from", min(dates), "--to", max(dates))  # fmt: skip
    wait_until(lambda: dates <= instance.get_materialized_partitions(EVALUATIONS), "the dates are materialised", 240)
    runs = [run for run in instance.get_runs() if run.tags.get("dagster/partition") in dates]
    assert {totals_of(up, run.run_id)[1:4] for run in runs} == {("backfill", "dry_run", "completed")}


def test_the_totals_are_plotted_over_the_dates(up: Up, page: Page, screenshot: Save) -> None:
    """A number that drifts is seen at a glance."""
    page.browser.get(f"{up.url}/assets/mentor_scenario_evaluations?view=overview")
    page.see("notifications_inactivity")
    page.click("//button[contains(., 'Plots')]")
    page.see("total_evaluated", "error_rate")
    page.see_element("canvas")
    screenshot("plots")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"page_size": 0}, "page_size: Input should be greater than or equal to 1"),
        ({"time_budget_seconds": -1}, "time_budget_seconds: Input should be greater than 0"),
        ({"evaluation_date": "2026-02-30"}, "evaluation_date: must be a date that exists, written YYYY-MM-DD"),
        ({"organisation_ids": ["acme"]}, "organisation_ids: must be ids of organisations, which are UUIDs"),
        ({"scenario_types": ["inactive"]}, "scenario_types[0] not in enum type ScenarioType"),
        ({"page_size": "many"}, 'page_size. Value "many" of type "<class \'str\'>" is not valid'),
        ({"pagesize": 5}, 'Received unexpected config entry "pagesize"'),
    ],
)
def test_a_bad_configuration_is_refused_with_a_sentence_and_without_a_run(
    up: Up, instance: DagsterInstance, config: dict[str, Any], sentence: str
) -> None:
    """A typing mistake must not become a failed run an hour later."""
    before = instance.get_runs_count()
    reply = up.launch(config)
    assert reply["__typename"] in ("RunConfigValidationInvalid", "PythonError")
    told = reply["message"] if "message" in reply else reply["errors"][0]["message"]
    assert sentence in told
    assert instance.get_runs_count() == before


def blocked_run(up: Up, **config: Any) -> tuple[str, psycopg.Connection[Any]]:
    """Launch a run that waits in the middle of its second page, until the returned connection is closed."""
    holder = up.connect()
    with up.connect() as connection:
        # The second page's last mentor: the row cannot be read while another transaction locks its table's rows.
        connection.execute("""CREATE OR REPLACE FUNCTION scenario.wait() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END $$""")
        connection.execute("DROP TRIGGER IF EXISTS wait ON scenario.scheduler_run_pages")
        connection.execute("""CREATE TRIGGER wait BEFORE UPDATE ON scenario.scheduler_run_pages
            FOR EACH ROW WHEN (NEW.page_number = 2) EXECUTE FUNCTION scenario.wait()""")
    holder.execute("SELECT pg_advisory_lock(4711)")
    run_id = up.launch({"dispatch_mode": "live", **config})["run"]["runId"]
    with up.connect() as connection:
        wait_until(
            lambda: connection.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone(),
            "the run waits in its second page",
            60,
        )
    return run_id, holder


def accepted(up: Up, run_id: str) -> list[str]:
    """Hold the log of a run against the stranger's checker and return the names of its entries."""
    lines = [
        line for line in up.output.read_text(encoding="utf-8").split("\n") if f'"invocation_id":"{run_id}"' in line
    ]
    stranger_accepts("\n".join(lines) + "\n")
    return [entry["event"] for entry in up.logged(run_id)]


def test_terminating_a_run_in_the_ui_closes_it_within_five_seconds(up: Up, page: Page) -> None:
    """Somebody sees that the wrong thing is being sent."""
    run_id, holder = blocked_run(up)
    with holder:
        page.browser.get(f"{up.url}/runs/{run_id}")
        page.click("//button[contains(., 'Terminate')]")
        page.see("terminate")
        began = time.monotonic()
        page.click("//div[contains(@class, 'dialog')]//button[contains(., 'Terminate')]")
        wait_until(lambda: len(up.logged(run_id)) == 3, "the log is closed", 60)
        took = time.monotonic() - began
        up.wait_for(run_id, "CANCELED")
    assert took < 5
    assert accepted(up, run_id) == ["scheduler_run_started", "scheduler_run_partial", "scheduler_run_completed"]
    partial, completed = up.logged(run_id)[-2:]
    assert (partial["reason"], completed["pages_processed"]) == ("terminated", 1)
    assert totals_of(up, run_id)[3] == "partial"


def test_a_killed_run_worker_is_noticed_and_its_log_closed_once(up: Up, instance: DagsterInstance) -> None:
    """Out of memory at night: the run is red in the morning, and its log has an end."""
    run_id, holder = blocked_run(up)
    with holder:
        killed = datetime.now(UTC)
        os.kill(worker_of(instance, run_id), signal.SIGKILL)
        up.wait_for(run_id, "FAILURE")
        wait_until(lambda: len(up.logged(run_id)) >= 3, "the daemon closes the log", 120)
        assert datetime.now(UTC) - killed < timedelta(minutes=2)
    ticks = len(sensor_ticks(instance))
    wait_until(lambda: len(sensor_ticks(instance)) > ticks + 1, "the sensor has looked again", 120)
    assert accepted(up, run_id) == ["scheduler_run_started", "scheduler_run_failed", "scheduler_run_completed"]
    assert up.logged(run_id)[-1]["pages_processed"] == 1
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.tags["outcome"] == "failed"


def worker_of(instance: DagsterInstance, run_id: str) -> int:
    """Return the process id of a run's worker, from what Dagster says when it starts one."""
    messages = [record.message for record in instance.all_logs(run_id)]
    [found] = [match for text in messages for match in re.findall(r"Started process for run \(pid: (\d+)\)", text)]
    return int(found)


def sensor_ticks(instance: DagsterInstance) -> list[Any]:
    [state] = [s for s in instance.all_instigator_state() if s.instigator_name == "close_dead_invocations"]
    return list(instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=100))


def test_a_request_in_sql_becomes_exactly_one_run(up: Up, instance: DagsterInstance) -> None:
    """An existing pg_cron entry stays the clock."""
    up.dagster("sensor", "start", "pg_cron_requests", "-w", "workspace.yaml")
    with up.connect() as connection:
        [request] = connection.execute(
            "SELECT scenario.request_scheduler_run(evaluation_date => '2026-05-01', scenario_types => '{milestone}')"
        ).fetchone() or [None]

        def run_of_request() -> Any:
            query = "SELECT invocation_id::text FROM scenario.scheduler_run_requests WHERE id = %s"
            return (connection.execute(query, [request]).fetchone() or [None])[0]

        wait_until(run_of_request, "the request's run is noted", 120)
        run_id = run_of_request()
    up.wait_for(run_id, "SUCCESS")
    assert totals_of(up, run_id)[1:4] == ("pg_cron", "dry_run", "completed")
    up.dagster("sensor", "stop", "pg_cron_requests", "-w", "workspace.yaml")
    assert [run.run_id for run in instance.get_runs() if run.tags.get("scenario/request_id") == str(request)] == [
        run_id
    ]


def test_nothing_was_sent_twice_by_all_of_this(up: Up) -> None:
    """The invariants of the database, after everything above."""
    with up.connect() as connection:
        connection.execute("DROP TRIGGER IF EXISTS wait ON scenario.scheduler_run_pages")
    engine = database.connect(up.database_url)
    with engine.connect() as connection:
        check_invariants(connection)
    engine.dispose()
