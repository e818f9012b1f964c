"""The vocabulary of events and its published schema, against the contract's table."""

from __future__ import annotations

import dataclasses
import json

from scenario_pipeline.log.schema import json_schema
from scenario_pipeline.log.vocabulary import TRIGGERED_BY, VOCABULARY
from scenario_pipeline_tests.support.log_entries import COMMON, TOTALS

CONTRACT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "scheduler_run_started": (
        ("info",),
        ("triggered_by", "evaluation_date", "scenario_types", "dispatch_mode", "time_budget_ms"),
    ),
    "mentor_evaluation_error": (("warning",), ("peer_mentor_id", "error_type", "error_message")),
    "scheduler_run_partial": (
        ("warning",),
        ("remaining_unprocessed_count", "reason", *TOTALS, "pages_processed"),
    ),
    "scheduler_run_failed": (("error",), ("error_type", "error_message", "remaining_unprocessed_count")),
    "scheduler_run_completed": (
        ("info", "warning"),
        (
            *("completed", *TOTALS, "pages_processed", "duration_ms"),
            *("suppressed_by_reason", "dispatched_by_scenario"),
        ),
    ),
}
CLOSED_SETS = {
    ("RunStarted", "triggered_by"): [
        *("dagster_schedule", "manual", "backfill", "sensor", "continuation", "retry", "pg_cron"),
    ],
    ("RunStarted", "dispatch_mode"): ["live", "dry_run"],
    ("RunPartial", "reason"): ["time_budget", "terminated"],
    ("RunCompleted", "level"): ["info", "warning"],
}


def test_the_vocabulary_is_the_contracts_table() -> None:
    """A reader of the contract knows every entry there is."""
    table = {
        kind.name: (kind.levels, tuple(item.name for item in dataclasses.fields(kind)))
        for kind in VOCABULARY
        if kind.component == "scenario-scheduler"
    }
    assert table == CONTRACT


def test_what_is_not_in_the_table_is_said_by_the_trigger_engine() -> None:
    others = [kind for kind in VOCABULARY if kind.name not in CONTRACT]
    assert {kind.component for kind in others} == {"scenario-trigger-engine"}
    assert [kind.name for kind in others if not kind.name.startswith("trigger_engine_")] == []


def test_every_name_stands_for_one_event() -> None:
    assert len({kind.name for kind in VOCABULARY}) == len(VOCABULARY)


def test_the_closed_sets_are_the_contracts() -> None:
    definitions = json_schema()["$defs"]
    published = {(kind, name): definitions[kind]["properties"][name]["enum"] for kind, name in CLOSED_SETS}
    assert published == CLOSED_SETS
    assert definitions["ErrorType"]["enum"] == [
        *("network_error", "timeout_error", "evaluation_logic_error", "database_error"),
    ]
    assert list(TRIGGERED_BY) == CLOSED_SETS["RunStarted", "triggered_by"]


def test_the_schema_asks_for_every_field_of_each_event_and_allows_no_other() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    lines = [schema["$defs"][reference["$ref"].removeprefix("#/$defs/")] for reference in schema["oneOf"]]
    assert sorted(line["properties"]["event"]["const"] for line in lines) == sorted(kind.name for kind in VOCABULARY)
    for line in lines:
        name = line["properties"]["event"]["const"]
        assert (line["type"], line["additionalProperties"]) == ("object", False)
        assert set(line["required"]) == set(line["properties"])
        assert set(line["properties"]) >= set(COMMON)
        if name in CONTRACT:
            assert set(line["properties"]) == {*COMMON, *CONTRACT[name][1]}


def test_the_schema_is_plain_json_and_the_same_each_time() -> None:
    assert json.loads(json.dumps(json_schema(), allow_nan=False)) == json_schema()
