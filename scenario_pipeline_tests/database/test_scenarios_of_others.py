"""Scenarios of another installed package: found, configured, evaluated, or refused in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scenario_pipeline.settings import PROJECT_FOLDER
from scenario_pipeline_tests.support.people import mentor_id

ANNIVERSARY = '''
"""`anniversary`: T years, roughly, since joining; a scenario of another package."""

from sqlalchemy import Date, Integer, Text, cast, func, literal, select, true

from scenario_pipeline.scenarios import Scenario


def matches(page, configuration, evaluation_date):
    threshold = func.unnest(configuration.c.thresholds).column_valued("threshold")
    crossed = (
        select(func.max(threshold).label("threshold"))
        .where(page.c.joined_on + threshold * 365 <= evaluation_date,
               page.c.joined_on + threshold * 365 > evaluation_date - configuration.c.lookback_days)
        .lateral("crossed")
    )
    return (
        select(
            page.c.user_id,
            cast(crossed.c.threshold, Integer).label("threshold"),
            cast(page.c.joined_on + crossed.c.threshold * 365, Date).label("crossed_on"),
            cast(crossed.c.threshold, Text).label("dedup_key"),
        )
        .select_from(page)
        .join(configuration, configuration.c.organisation_id == page.c.organisation_id)
        .join(crossed, crossed.c.threshold.is_not(None))
    )


SCENARIO = Scenario("anniversary", "Years since joining.", (1, 5), 7, 300, matches)
'''
CLASHING = """
from scenario_pipeline.scenarios import Scenario

SCENARIO = Scenario("milestone", "Another milestone.", (1,), 7, 1, lambda page, configuration, on: None)
"""
BADLY_NAMED = CLASHING.replace('"milestone"', '"My Scenario"')

SHOW = """
from scenario_pipeline.errors import UserError
from scenario_pipeline.scenarios import registry
try:
    print(*registry())
except UserError as exc:
    print(exc.exit_status, exc)
"""


def in_process_with(folder: Path, module: str, code: str, *, value: str = "extra_scenario:SCENARIO", **env: str) -> str:
    """Run `code` where a distribution is installed that offers `module`; return what it printed."""
    (folder / "extra_scenario.py").write_text(module, encoding="utf-8")
    info = folder / "extra_scenarios-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-scenarios\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[scenario_pipeline.scenarios]\nextra = {value}\n", encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT_FOLDER,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PROJECT_FOLDER)]), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout.strip()


def test_a_scenario_of_another_package_is_found_configured_and_evaluated(tmp_path: Path, database_url: str) -> None:
    """Adding a scenario touches no other file: neither the engine nor a migration."""
    code = """
import os
from datetime import date
from scenario_pipeline.scenarios import insert_default_configuration, registry
from scenario_pipeline.storage import database
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import insert_mentor, insert_organisation
from scenario_pipeline_tests.support.runs import make_request, run_invocation

print(*registry())
engine = database.connect(os.environ["URL"])
with engine.begin() as connection:
    insert_default_configuration(connection, registry().values())
    insert_organisation(connection)
    insert_mentor(connection, joined_on=date(2023, 3, 30))
report = run_invocation(engine, make_request(date(2024, 3, 31), scenario_types=list(registry())))
print(report.status, report.stats.dispatched_by_scenario)
for row in sent(engine):
    print(*row)
engine.dispose()
"""
    printed = in_process_with(tmp_path, ANNIVERSARY, code, URL=database_url)

    assert printed.splitlines() == [
        "anniversary certification_expiry inactivity milestone",
        "completed {'anniversary': 1}",
        f"{mentor_id(1)} anniversary 2024-03-31 1970-01-01 1 1 2024-03-29",
    ]


@pytest.mark.parametrize(
    ("module", "value", "sentence"),
    [
        (
            CLASHING,
            "extra_scenario:SCENARIO",
            "2 Two installed scenarios are called milestone: remove one of the packages.",
        ),
        (BADLY_NAMED, "extra_scenario:SCENARIO", "2 The scenario extra cannot be loaded: ValueError."),
        ("1 / 0", "extra_scenario:SCENARIO", "2 The scenario extra cannot be loaded: ZeroDivisionError."),
        (ANNIVERSARY, "extra_scenario:MISSING", "2 The scenario extra cannot be loaded: AttributeError."),
        (ANNIVERSARY, "not_installed:SCENARIO", "2 The scenario extra cannot be loaded: ModuleNotFoundError."),
        (ANNIVERSARY, "extra_scenario:matches", "2 The entry point extra does not name a Scenario."),
    ],
)
def test_a_scenario_of_another_package_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, module: str, value: str, sentence: str
) -> None:
    """The person who installed it must learn which package it was; of two rules with one name, either could send."""
    assert in_process_with(tmp_path, module, SHOW, value=value) == sentence
