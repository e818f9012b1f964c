"""What `doctor` checks: how the runs of the last dates ended.

Belongs here: whether runs happen, reach everybody and evaluate them. Does not belong here: whether they could
(`doctor.database`), or what Dagster records of them (`defs.instance.examination`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from scenario_pipeline.doctor.findings import Finding, Look, Status
from scenario_pipeline.storage.ledger.dates import (
    DatedRun,
    newest_completed_live_run,
    newest_dates,
    newest_run,
    not_made_up_for,
    runs_of_dates,
    unfinished,
)

# The dates whose notifications a run of today may still catch up.
DATES = 3


def examine_last_run(look: Look) -> Iterator[Finding]:
    """Whether the last run failed, and whether live runs are completed as often as the schedule wants them."""
    name, problems = "last_run", False
    last, completed = newest_run(look.connection), newest_completed_live_run(look.connection)
    if last is not None and last.status == "failed":
        problems = True
        sentence = f"The last run, {last.invocation_id} for {last.evaluation_date}, failed."
        remedy = f"read why at /runs/{last.invocation_id} in the web UI; scenario-pipeline run"
        yield Finding(name, Status.PROBLEM, sentence, remedy)
    if completed is not None and look.last_due is not None and completed.started_at < look.last_due:
        problems = True
        sentence = (
            f"The newest completed live run began at {_minute(completed.started_at)}; "
            f"SCENARIO_CRON asked for one at {_minute(look.last_due)}."
        )
        yield Finding(
            name, Status.PROBLEM, sentence, "scenario-pipeline up, or set SCENARIO_CRON to when runs are made"
        )
    if problems:
        return
    if completed is None:
        yield Finding(name, Status.OK, "No live run has been completed yet.")
    else:
        sentence = f"The newest completed live run began at {_minute(completed.started_at)}."
        yield Finding(name, Status.OK, sentence)


def examine_reach(look: Look) -> Iterator[Finding]:
    """Whether a run of the newest dates left mentors to which no later one came."""
    name = "everyone_evaluated"
    left = unfinished(_runs_of_newest_dates(look, DATES))
    for run in left[-1:]:
        whom = "an unknown number of" if run.remaining is None else f"{run.remaining:,}"
        which = f"The {run.status} run" if len(left) == 1 else f"The latest of {len(left)} unfinished runs"
        sentence = (
            f"{which} {run.invocation_id} for {run.evaluation_date} left {whom} mentors unprocessed, and no later run "
            "made up for it."
        )
        remedy = "scenario-pipeline run"
        if run.status == "partial":
            remedy = f"{remedy}; raise SCENARIO_TIME_BUDGET_SECONDS if that is partial too"
        yield Finding(name, Status.PROBLEM, sentence, remedy)
    if not left:
        yield Finding(name, Status.OK, "The runs of the newest dates reached everybody.")


def examine_error_rate(look: Look) -> Iterator[Finding]:
    """Whether more mentors had an error on the newest date than the settings allow."""
    name = "error_rate"
    runs = not_made_up_for(_runs_of_newest_dates(look, 1))
    worst = max(runs, key=lambda run: run.error_rate, default=None)
    allowed = look.settings.max_error_rate
    if worst is None or worst.error_rate <= allowed:
        rate = 0.0 if worst is None else worst.error_rate
        yield Finding(name, Status.OK, f"{rate:.2%} of the mentors had an error on the newest date.")
        return
    sentence = (
        f"{worst.total_errors:,} mentors, {worst.error_rate:.2%}, had an error in the run {worst.invocation_id} for "
        f"{worst.evaluation_date}; SCENARIO_MAX_ERROR_RATE allows {allowed:.2%}."
    )
    remedy = f"read the table of errors in the metadata of summarize_run, at /runs/{worst.invocation_id} in the web UI"
    yield Finding(name, Status.PROBLEM, sentence, remedy)


def _runs_of_newest_dates(look: Look, dates: int) -> list[DatedRun]:
    today = look.settings.today(datetime.now(UTC))
    return runs_of_dates(look.connection, newest_dates(look.connection, today, dates))


def _minute(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
