"""What people see of a run in Dagster: metadata of the run and its materialisation, and tags to filter by.

Belongs here: turning a report into metadata and tags. Does not belong here: counting.
"""

import unicodedata
from collections.abc import Mapping
from typing import Any

from dagster import DagsterEventType, DagsterInstance, MetadataValue, TableColumn, TableRecord, TableSchema

from scenario_pipeline.batch_stats import DISPATCHED, SUPPRESSION_REASONS, BatchStats
from scenario_pipeline.records import LIVE_DAYS, RunOrder
from scenario_pipeline.report import Report

# Metadata is one row of Dagster's event log: a table of thousands of organisations belongs into the database.
MAX_TABLE_ROWS = 200
MAX_NAME_CHARACTERS = 200
# Control characters, line and paragraph separators, lone surrogates.
_NOT_OF_A_LINE = frozenset({"Cc", "Zl", "Zp", "Cs"})
_OUTCOMES = (DISPATCHED, *SUPPRESSION_REASONS)
_TABLE_SCHEMA = TableSchema(
    columns=[
        TableColumn("scenario", "string"),
        TableColumn("organisation", "string", description="Its name, or its id where the name could not be read."),
        *(TableColumn(outcome, "int") for outcome in _OUTCOMES),
    ]
)


def report_metadata(
    order: RunOrder,
    report: Report,
    *,
    organisation_names: Mapping[str, str],
    events_url: str | None,
    live_on_request: bool,
) -> dict[str, MetadataValue[Any]]:
    """Return the totals as numbers that Dagster plots, what they are made of, and what was asked for.

    Args:
        order: what the invocation was to do.
        report: how it ended.
        organisation_names: names for the table, by organisation id.
        events_url: where the web UI shows the events of the run, or None if they are not captured.
        live_on_request: whether notifications were sent for a date that is only evaluated unless asked otherwise.
    """
    totals = report.totals()
    numbers = {name: value for name, value in totals.items() if isinstance(value, int)}
    numbers["remaining_unprocessed_count"] = report.remaining or 0
    # A number for each reason and scenario, zero included: a plot with gaps tells nothing.
    numbers |= {f"suppressed_{name}": totals["suppressed_by_reason"].get(name, 0) for name in SUPPRESSION_REASONS}
    numbers |= {f"dispatched_{name}": totals["dispatched_by_scenario"].get(name, 0) for name in order.scenario_types}
    metadata: dict[str, MetadataValue[Any]] = {
        **{name: MetadataValue.int(value) for name, value in numbers.items()},
        "error_rate": MetadataValue.float(report.stats.error_rate),
        "suppressed_by_reason": MetadataValue.json(totals["suppressed_by_reason"]),
        "dispatched_by_scenario": MetadataValue.json(totals["dispatched_by_scenario"]),
        "outcomes": MetadataValue.table(outcome_table(report.stats, organisation_names), _TABLE_SCHEMA),
        "status": MetadataValue.text(report.status),
        "evaluation_date": MetadataValue.text(order.evaluation_date.isoformat()),
        "dispatch_mode": MetadataValue.text(order.dispatch_mode),
        "triggered_by": MetadataValue.text(order.triggered_by),
    }
    if events_url is not None:
        metadata["events"] = MetadataValue.url(events_url)
    if live_on_request:
        metadata["live_on_request"] = MetadataValue.text(
            f"Notifications were sent for a date more than {LIVE_DAYS} days before today, as asked for."
        )
    return metadata


def outcome_table(stats: BatchStats, organisation_names: Mapping[str, str]) -> list[TableRecord]:
    """Return the outcomes as a row a scenario and organisation, at most `MAX_TABLE_ROWS` and a row for the others."""
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for organisation, scenario, outcome, n in stats.outcome_rows():
        rows.setdefault((scenario, organisation), dict.fromkeys(_OUTCOMES, 0))[outcome] += n
    shown = set(sorted(rows, key=lambda key: -sum(rows[key].values()))[:MAX_TABLE_ROWS])
    records = [
        TableRecord(
            {
                # A remote engine does not tell to which scenario a suppression belongs.
                "scenario": key[0] or "unknown",
                "organisation": in_one_line(organisation_names.get(key[1], key[1])) or "unknown",
                **rows[key],
            }
        )
        for key in sorted(shown)
    ]
    others = [counts for key, counts in rows.items() if key not in shown]
    if others:
        sums = {outcome: sum(counts[outcome] for counts in others) for outcome in _OUTCOMES}
        records.append(TableRecord({"scenario": "all", "organisation": f"{len(others)} more rows", **sums}))
    return records


def in_one_line(name: str) -> str:
    """Return a name in one line of at most `MAX_NAME_CHARACTERS`: any text may stand in a table of the user's own."""
    cut = name if len(name) <= MAX_NAME_CHARACTERS else f"{name[: MAX_NAME_CHARACTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
    return "".join(" " if unicodedata.category(letter) in _NOT_OF_A_LINE else letter for letter in cut).strip()


def run_tags(order: RunOrder, report: Report, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the tags by which runs are found in the web UI.

    Args:
        order: what the invocation was to do.
        report: how it ended.
        inherited: tags that the run has already: Dagster copies those of its parent to a re-execution.
    """
    tags = {
        "evaluation_date": order.evaluation_date.isoformat(),
        "triggered_by": order.triggered_by,
        "outcome": report.status,
    }
    if report.reason is not None or "partial" in (inherited or {}):
        tags["partial"] = report.reason or ""
    return tags


def events_url(instance: DagsterInstance, run_id: str) -> str | None:
    """Return where the web UI shows the events of a run, relative to its root; None if nothing was captured."""
    captured = instance.all_logs(run_id, of_type=DagsterEventType.LOGS_CAPTURED)
    if not captured or captured[-1].dagster_event is None:
        return None
    file_key = captured[-1].dagster_event.logs_captured_data.file_key
    return f"/runs/{run_id}?logType=stdout&logFileKey={file_key}"


def recorded_totals(instance: DagsterInstance, run_id: str) -> dict[str, Any] | None:
    """Return the metadata that Dagster holds of a run of the scheduler, by name; None where it holds none."""
    types = {DagsterEventType.STEP_OUTPUT, DagsterEventType.STEP_FAILURE}
    for record in instance.all_logs(run_id, of_type=types):
        event = record.dagster_event
        if event is None or not (event.step_key or "").endswith("summarize_run"):
            continue
        if event.is_successful_output:
            return {name: value.value for name, value in event.step_output_data.metadata.items()}
        failure = event.step_failure_data.user_failure_data
        if failure is not None:
            return {name: value.value for name, value in failure.metadata.items()}
    return None
