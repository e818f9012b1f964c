"""Scenarios: one module each, found through `registry`.

Belongs here: what a scenario is, and how installed ones are found: every module of this package and every entry point
of the group `scenario_pipeline.scenarios`. Does not belong here: any one scenario's rule, dispatch or cooldown.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from sqlalchemy import ColumnElement, Connection, FromClause, Select, select
from sqlalchemy.dialects.postgresql import insert

from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError, UserError
from scenario_pipeline.storage.tables import scenario_evaluation_config

ENTRY_POINT_GROUP = "scenario_pipeline.scenarios"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")

MatchesOf = Callable[[FromClause, FromClause, ColumnElement[object]], Select[tuple[str, int, object, str]]]


@dataclass(frozen=True)
class Scenario:
    """A rule that says when a mentor should hear from the organisation (contract section 3).

    Attributes:
        scenario_type: its name, `[a-z][a-z0-9_]*`, at most 63 characters.
        description: one sentence for the web UI.
        thresholds: default thresholds, in days or activity counts.
        lookback_days: default look-back window: how many missed days are caught up.
        cooldown_days: default distance between two notifications of one mentor.
        matches: builds the set-based select. It is given `page` (columns `user_id`, `organisation_id`, `joined_on`),
            `configuration` (columns `organisation_id`, `thresholds`, `lookback_days`; enabled rows of this scenario
            only) and the evaluation date, and returns at most one row a mentor: `user_id`, `threshold`,
            `crossed_on`, `dedup_key`.
    """

    scenario_type: str
    description: str
    thresholds: Sequence[int]
    lookback_days: int
    cooldown_days: int
    matches: MatchesOf

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.scenario_type):
            raise ValueError(f"{self.scenario_type!r} is no scenario type: it must match [a-z][a-z0-9_]*")


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
        yield importlib.import_module(f"{__name__}.{module.name}").SCENARIO


def _from_entry_points() -> Iterable[Scenario]:
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            scenario = entry_point.load()
        except Exception as exc:  # foreign code: whatever it raises, the user must learn which package
            raise UserError(f"The scenario {entry_point.name} cannot be loaded: {type(exc).__name__}.") from exc
        if not isinstance(scenario, Scenario):
            raise UserError(f"The entry point {entry_point.name} does not name a Scenario.")
        yield scenario


def select_scenarios(names: Iterable[str]) -> tuple[str, ...]:
    """Return the scenario types of a run, sorted; no names mean all installed ones.

    Raises:
        UserError: a name is not installed.
    """
    wanted = sorted(set(names)) or list(registry())
    for name in wanted:
        if name not in registry():
            raise UserError(f"There is no scenario {name[:63]!r}: the installed ones are {', '.join(registry())}.")
    return tuple(wanted)


def insert_default_configuration(connection: Connection, scenarios: Iterable[Scenario]) -> None:
    """Give each scenario its default configuration row unless it has one; a row that is there is not touched."""
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
    """Refuse a scenario without a default row: it would silently match nobody.

    Raises:
        SystemicError: with a sentence that names the scenario and the command that mends it.
    """
    table = scenario_evaluation_config
    rows = connection.execute(table.select().where(table.c.organisation_id.is_(None)))
    configured = {row.scenario_type for row in rows}
    for scenario_type in scenario_types:
        if scenario_type not in configured:
            sentence = f"the scenario {scenario_type} has no default configuration: run scenario-pipeline db upgrade"
            raise SystemicError(ErrorInfo(ErrorType.DATABASE, sentence))
