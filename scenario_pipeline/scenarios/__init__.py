"""Scenarios: one module each, found through `registry`.

Belongs here: the type of a scenario, its building blocks, and the search for installed ones. These are every module of
this package and every entry point of the group `scenario_pipeline.scenarios`. An author imports nothing else from the
project. Does not belong here: the rule of any one scenario, dispatch or cooldown.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, FromClause, Select, Table, Text, case, cast, func, select
from sqlalchemy.dialects.postgresql import insert

from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError, UserError
from scenario_pipeline.storage.tables import scenario_evaluation_config, source_activities, source_certifications

ENTRY_POINT_GROUP = "scenario_pipeline.scenarios"
# Longer text enters a `dedup_key` as a hash, because an index accepts no key of several thousand bytes.
MAX_KEY_TEXT_BYTES = 200
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
# The schedule of such a scenario would have the name of the schedule for all scenarios.
_RESERVED = "scenario_scheduler"

activities: Table = source_activities
"""What mentors did: `user_id`, `activity_type`, `activity_date`; includes rows after the evaluation date."""

certifications: Table = source_certifications
"""Certifications of mentors: `user_id`, `certification_type`, `expires_on`."""

Page: TypeAlias = FromClause
"""The mentors to evaluate: `user_id`, `organisation_id`, `joined_on`."""

Configuration: TypeAlias = FromClause
"""Enabled rows of this scenario only: `organisation_id`, `thresholds`, `lookback_days`."""

EvaluationDate: TypeAlias = ColumnElement[date]
"""The date for which the mentors are evaluated."""

Matches: TypeAlias = Select[str, int, date, str]
"""At most one row for each mentor: `user_id`, `threshold`, `crossed_on`, `dedup_key`."""

MatchesOf: TypeAlias = Callable[[Page, Configuration, EvaluationDate], Matches]
"""A function that builds the set-based select of a scenario."""


@dataclass(frozen=True)
class Scenario:
    """A rule for when a mentor should hear from the organisation (contract section 3).

    Attributes:
        scenario_type: its name, `[a-z][a-z0-9_]*`, at most 63 characters.
        description: one sentence for the web UI.
        thresholds: default thresholds, in days or activity counts.
        lookback_days: default look-back window: how many missed days a run catches up.
        cooldown_days: default number of days between two notifications to one mentor.
        matches: builds the set-based select from a `Page`, a `Configuration` and the evaluation date.
        cron: when the scenario's own schedule ticks, in five fields; None for `SCENARIO_CRON`. That schedule is off
            until someone turns it on, because another one evaluates all scenarios.
    """

    scenario_type: str
    description: str
    thresholds: Sequence[int]
    lookback_days: int
    cooldown_days: int
    matches: MatchesOf
    cron: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.scenario_type) or self.scenario_type == _RESERVED:
            sentence = f"it must match [a-z][a-z0-9_]*, have at most 63 characters and not be {_RESERVED}"
            raise ValueError(f"{self.scenario_type!r} is not a scenario type: {sentence}")


def bounded_text(value: ColumnElement[Any]) -> ColumnElement[str]:
    """Return free text in a form that may enter a `dedup_key` (contract section 3).

    Args:
        value: an expression of type text, such as a column.

    Returns:
        The text itself, or the 64 hexadecimal digits of its SHA-256 if it is longer than 200 bytes.
    """
    digest = func.encode(func.sha256(func.convert_to(value, "UTF8")), "hex")
    return cast(case((func.octet_length(value) <= MAX_KEY_TEXT_BYTES, value), else_=digest), Text)


@cache
def registry() -> Mapping[str, Scenario]:
    """Return the installed scenarios by type, in alphabetical order.

    Raises:
        UserError: two scenarios have the same type, or an entry point cannot be loaded.
    """
    found: dict[str, Scenario] = {}
    for scenario in (*_built_in(), *_from_entry_points()):
        if scenario.scenario_type in found:
            raise UserError(f"Two installed scenarios are called {scenario.scenario_type}: remove one of the packages.")
        found[scenario.scenario_type] = scenario
    return dict(sorted(found.items()))


def _built_in() -> Iterable[Scenario]:
    for module in pkgutil.iter_modules(__path__):
        yield _loaded(module.name, partial(_scenario_of, f"{__name__}.{module.name}"), "The module scenarios/{}.py")


def _scenario_of(module: str) -> object:
    return importlib.import_module(module).SCENARIO


def _from_entry_points() -> Iterable[Scenario]:
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        yield _loaded(entry_point.name, entry_point.load, "The entry point {}")


def _loaded(name: str, load: Callable[[], object], place: str) -> Scenario:
    try:
        scenario = load()
    except Exception as exc:  # foreign code may raise anything, and the user must learn which scenario it is
        raise UserError(f"The scenario {name} cannot be loaded: {type(exc).__name__}.") from exc
    if not isinstance(scenario, Scenario):
        raise UserError(f"{place.format(name)} does not name a Scenario.")
    return scenario


def select_scenarios(names: Iterable[str]) -> tuple[str, ...]:
    """Return the scenario types of a run, sorted; no names means all installed ones.

    Raises:
        UserError: no scenario with such a name is installed.
    """
    wanted = sorted(set(names)) or list(registry())
    for name in wanted:
        if name not in registry():
            raise UserError(f"There is no scenario {name[:63]!r}: the installed ones are {', '.join(registry())}.")
    return tuple(wanted)


def insert_default_configuration(connection: Connection, scenarios: Iterable[Scenario]) -> None:
    """Give each scenario a default configuration row unless it has one; existing rows are not changed."""
    table = scenario_evaluation_config
    present = set(connection.execute(select(table.c.scenario_type).where(table.c.organisation_id.is_(None))).scalars())
    for scenario in scenarios:
        if scenario.scenario_type in present:
            continue
        connection.execute(
            insert(scenario_evaluation_config)
            .values(
                organisation_id=None,
                scenario_type=scenario.scenario_type,
                enabled=True,
                thresholds=list(scenario.thresholds),
                lookback_days=scenario.lookback_days,
                cooldown_days=scenario.cooldown_days,
            )
            .on_conflict_do_nothing(constraint="scenario_evaluation_config_key")
        )


def check_configured(connection: Connection, scenario_types: Iterable[str]) -> None:
    """Refuse a scenario without a default row, which would silently match nobody.

    Raises:
        SystemicError: the message names the scenario and the command that fixes it.
    """
    table = scenario_evaluation_config
    rows = connection.execute(table.select().where(table.c.organisation_id.is_(None)))
    configured = {row.scenario_type for row in rows}
    for scenario_type in scenario_types:
        if scenario_type not in configured:
            sentence = f"the scenario {scenario_type} has no default configuration: run scenario-pipeline db upgrade"
            raise SystemicError(ErrorInfo(ErrorType.DATABASE, sentence))
