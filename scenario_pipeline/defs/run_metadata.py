"""What people see of a run and of a date in Dagster: metadata, and tags to filter by (contract section 12).

Belongs here: turning a report, or the numbers of a date, into metadata and tags. Does not belong here: counting.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from dagster import DagsterEventType, DagsterInstance, MetadataValue, TableColumn, TableRecord, TableSchema

from scenario_pipeline.batch_stats import DISPATCHED, SUPPRESSION_REASONS, BatchStats
from scenario_pipeline.records import LIVE_DAYS, MentorError, RunOrder
from scenario_pipeline.report import Report
from scenario_pipeline.scenarios import registry
from scenario_pipeline.storage.ledger.dates import DateNumbers

# Metadata is one row of Dagster's event log: a table of thousands of organisations belongs into the database.
MAX_TABLE_ROWS = 200
# The first ones say what is wrong; each has an entry in the log.
MAX_ERRORS_SHOWN = 100
THIS_RUN = "this_run"
MAX_NAME_CHARACTERS = 200
# Control characters, line and paragraph separators, lone surrogates.
_NOT_OF_A_LINE = frozenset({"Cc", "Zl", "Zp", "Cs"})
_OUTCOMES = (DISPATCHED, *SUPPRESSION_REASONS)
# A dry run's numbers have other names, so that nobody plots them as sent.
_OF_DRY_RUNS = {
    "total_dispatched": "would_dispatch",
    "total_suppressed": "would_suppress",
    "dispatched_by_scenario": "would_dispatch_by_scenario",
    "suppressed_by_reason": "would_suppress_by_reason",
    DISPATCHED: "would_dispatch",
}
_ERRORS_SCHEMA = TableSchema(
    columns=[TableColumn(name, "string") for name in ("peer_mentor_id", "error_type", "error_message")]
)


def report_metadata(
    order: RunOrder,
    report: Report,
    *,
    organisation_names: Mapping[str, str],
    errors: Sequence[MentorError],
    events_url: str | None,
    live_on_request: bool,
) -> dict[str, MetadataValue[Any]]:
    """Return the totals as numbers that Dagster plots, what they are made of, and what was asked for.

    Args:
        order: what the invocation was to do.
        report: how it ended.
        organisation_names: names for the table, by organisation id.
        errors: the mentors with an error; the first `MAX_ERRORS_SHOWN` are shown.
        events_url: where the web UI shows the events of the run, or None if they are not captured.
        live_on_request: whether notifications were sent for a date that is only evaluated unless asked otherwise.
    """
    is_dry = order.dispatch_mode == "dry_run"
    metadata: dict[str, MetadataValue[Any]] = {
        **{name: MetadataValue.int(value) for name, value in _numbers_of_run(order, report).items()},
        "error_rate": MetadataValue.float(report.stats.error_rate),
        **{
            _shown_as(name, is_dry=is_dry): MetadataValue.json(report.totals()[name])
            for name in ("suppressed_by_reason", "dispatched_by_scenario")
        },
        "outcomes": MetadataValue.table(
            outcome_table(report.stats, organisation_names, is_dry=is_dry), _outcomes_schema(is_dry=is_dry)
        ),
        "status": MetadataValue.text(report.status),
        "evaluation_date": MetadataValue.text(order.evaluation_date.isoformat()),
        "dispatch_mode": MetadataValue.text(order.dispatch_mode),
        "triggered_by": MetadataValue.text(order.triggered_by),
    }
    if errors:
        metadata["errors"] = MetadataValue.table(_error_table(errors), _ERRORS_SCHEMA)
    if events_url is not None:
        metadata["events"] = MetadataValue.url(events_url)
    if live_on_request:
        metadata["live_on_request"] = MetadataValue.text(
            f"Notifications were sent for a date more than {LIVE_DAYS} days before today, as asked for."
        )
    return metadata


def _numbers_of_run(order: RunOrder, report: Report) -> dict[str, int]:
    totals, is_dry = report.totals(), order.dispatch_mode == "dry_run"
    numbers = {_shown_as(name, is_dry=is_dry): value for name, value in totals.items() if isinstance(value, int)}
    numbers["remaining_unprocessed_count"] = report.remaining or 0
    # A number for each reason and scenario, zero included: a plot with gaps shows nothing.
    suppressed, dispatched = ("would_suppress", "would_dispatch") if is_dry else ("suppressed", "dispatched")
    numbers |= {f"{suppressed}_{name}": totals["suppressed_by_reason"].get(name, 0) for name in SUPPRESSION_REASONS}
    numbers |= {f"{dispatched}_{name}": totals["dispatched_by_scenario"].get(name, 0) for name in order.scenario_types}
    return numbers


def _shown_as(name: str, *, is_dry: bool) -> str:
    return _OF_DRY_RUNS.get(name, name) if is_dry else name


def _error_table(errors: Sequence[MentorError]) -> list[TableRecord]:
    return [
        TableRecord(
            {
                "peer_mentor_id": item.peer_mentor_id,
                "error_type": item.error.error_type.value,
                "error_message": item.error.error_message,
            }
        )
        for item in errors[:MAX_ERRORS_SHOWN]
    ]


def notification_metadata(numbers: DateNumbers) -> dict[str, MetadataValue[Any]]:
    """Return the notifications of a date as numbers that Dagster plots, a zero for each scenario without one."""
    by_scenario = dict.fromkeys(registry(), 0) | dict(numbers.notifications)
    return {
        "notifications": MetadataValue.int(sum(by_scenario.values())),
        **{f"notifications_{scenario}": MetadataValue.int(n) for scenario, n in by_scenario.items()},
    }


def date_metadata(numbers: DateNumbers, of_run: Mapping[str, MetadataValue[Any]]) -> dict[str, MetadataValue[Any]]:
    """Return what the partition of a date shows: the date's own numbers, and below them those of the run.

    Args:
        numbers: what the date has come to, this run included.
        of_run: the metadata of the run; its numbers are put together as `this_run`, so that they are not plotted.
    """
    plotted = {name for name, value in of_run.items() if isinstance(value.value, int | float)}
    latest = numbers.latest
    metadata = {
        **{name: value for name, value in of_run.items() if name not in plotted},
        THIS_RUN: MetadataValue.json({name: of_run[name].value for name in plotted}),
        "runs": MetadataValue.int(numbers.runs),
        **notification_metadata(numbers),
    }
    if latest is not None:
        metadata |= {
            "total_active_mentors": MetadataValue.int(latest.total_active_mentors),
            "total_evaluated": MetadataValue.int(latest.total_evaluated),
            "total_errors": MetadataValue.int(latest.total_errors),
            "remaining_unprocessed_count": MetadataValue.int(latest.remaining or 0),
            "error_rate": MetadataValue.float(latest.error_rate),
        }
    return metadata


def _outcomes_schema(*, is_dry: bool) -> TableSchema:
    return TableSchema(
        columns=[
            TableColumn("scenario", "string"),
            TableColumn("organisation", "string", description="Its name, or its id where the name could not be read."),
            *(TableColumn(_shown_as(outcome, is_dry=is_dry), "int") for outcome in _OUTCOMES),
        ]
    )


def outcome_table(
    stats: BatchStats, organisation_names: Mapping[str, str], *, is_dry: bool = False
) -> list[TableRecord]:
    """Return the outcomes as a row a scenario and organisation, at most `MAX_TABLE_ROWS` and a row for the others."""
    outcomes = [_shown_as(outcome, is_dry=is_dry) for outcome in _OUTCOMES]
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for organisation, scenario, outcome, n in stats.outcome_rows():
        rows.setdefault((scenario, organisation), dict.fromkeys(outcomes, 0))[_shown_as(outcome, is_dry=is_dry)] += n
    shown = set(sorted(rows, key=lambda key: -sum(rows[key].values()))[:MAX_TABLE_ROWS])
    records = [
        TableRecord(
            {
                # A remote engine does not report to which scenario a suppression belongs.
                "scenario": key[0] or "unknown",
                "organisation": in_one_line(organisation_names.get(key[1], key[1])) or "unknown",
                **rows[key],
            }
        )
        for key in sorted(shown)
    ]
    others = [counts for key, counts in rows.items() if key not in shown]
    if others:
        sums = {outcome: sum(counts[outcome] for counts in others) for outcome in outcomes}
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
        "dispatch_mode": order.dispatch_mode,
        "dispatched": str(report.stats.total_dispatched if order.dispatch_mode == "live" else 0),
        "errors": str(report.stats.total_errors),
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
    """Return the totals that Dagster's metadata of a run show, under the ledger's names; None where there are none."""
    types = {DagsterEventType.STEP_OUTPUT, DagsterEventType.STEP_FAILURE}
    for record in instance.all_logs(run_id, of_type=types):
        event = record.dagster_event
        if event is None or not (event.step_key or "").endswith("summarize_run"):
            continue
        if event.is_successful_output:
            return totals_shown(event.step_output_data.metadata)
        failure = event.step_failure_data.user_failure_data
        if failure is not None:
            return totals_shown(failure.metadata)
    return None


def totals_shown(metadata: Mapping[str, MetadataValue[Any]]) -> dict[str, Any]:
    """Return what the metadata of a run, or of a date with its latest run, say of the run, under the ledger's names."""
    shown = {name: value.value for name, value in metadata.items()}
    of_run = shown.get(THIS_RUN)
    if isinstance(of_run, Mapping):
        shown |= of_run
    if shown.get("dispatch_mode") == "dry_run":
        shown |= {name: shown[other] for name, other in _OF_DRY_RUNS.items() if other in shown}
    return shown
