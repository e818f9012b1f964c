"""What authors of scenarios rely on: the documented example, its test, and a folder that is all they touch.

Belongs here: `scenario_pipeline.scenarios` and `scenario_pipeline.testing` as an author meets them. Does not belong
here: what makes the built-in scenarios due (`test_scenarios`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import ColumnElement, literal_column, true, union_all

import scenario_pipeline
from scenario_pipeline.defs.schedules import checked_cron
from scenario_pipeline.errors import UserError
from scenario_pipeline.scenarios import Configuration, EvaluationDate, Matches, Page, Scenario, registry
from scenario_pipeline.testing import assert_due
from scenario_pipeline_tests.support.packages import example, packaged

PACKAGE = Path(scenario_pipeline.__file__).resolve().parent
PROJECT = PACKAGE.parent
D = date(2026, 8, 1)


def python(*arguments: str, folders: list[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where these folders come first, with nothing of ours in the environment."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=inherited | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "SCENARIO_HOME": str(cwd / "home")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_documented_test_of_a_scenario_passes_and_a_wrong_one_shows_both_sides(tmp_path: Path) -> None:
    """Authors copy it; what they then read when their rule is wrong must be enough to find out why."""
    packaged(tmp_path)
    pytest_here = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path))
    done = python(*pytest_here, folders=[tmp_path, PROJECT], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "1 passed" in done.stdout

    broken = tmp_path / "acme_scenarios" / "anniversary.py"
    rule = broken.read_text(encoding="utf-8")
    broken.write_text(rule.replace("func.max(threshold)", "(func.max(threshold) + 1)"), encoding="utf-8")
    done = python(*pytest_here, folders=[tmp_path, PROJECT], cwd=tmp_path)
    assert done.returncode == 1
    for line in (
        "anniversary on 2026-08-01, for a mentor who joined on 2024-08-01, another match is due than expected:",
        "  threshold   730 expected, found 731",
        "  crossed_on  2026-08-01 expected, found 2026-08-02",
        "  dedup_key   '730' expected, found '731'",
    ):
        assert line in done.stdout
    # The author's line is shown, and none of ours.
    assert "testing.py:" not in done.stdout.split("short test summary")[0]


def test_assert_due_knows_what_the_built_in_scenarios_know() -> None:
    """Activities, certifications, the date of joining and the configuration all reach the rule."""
    inactivity, milestone, expiry = (registry()[name] for name in ("inactivity", "milestone", "certification_expiry"))
    assert_due(inactivity, joined_on=date(2026, 7, 2), on=D, expected=(30, D, "2026-07-02:30"))
    assert_due(inactivity, activities=[date(2026, 7, 2)], on=D, expected=(30, D, "2026-07-02:30"))
    assert_due(milestone, activities=[("visit", D)], on=D, expected=(1, D, "1"))
    assert_due(milestone, activities=[D], on=D, thresholds=[2], expected=None)
    assert_due(milestone, activities=[date(2026, 7, 20)], on=D, expected=None)
    assert_due(milestone, activities=[date(2026, 7, 20)], on=D, lookback_days=13, expected=(1, date(2026, 7, 20), "1"))
    assert_due(expiry, certifications=[("driver", date(2026, 8, 8))], on=D, expected=(7, D, "driver:2026-08-08:7"))
    assert_due(milestone, activities=[D], joined_on=date(2026, 8, 2), on=D, expected=None)


@pytest.mark.parametrize(
    ("activities", "expected", "shown"),
    [
        ([], (1, D, "1"), "  expected: threshold 1, crossed_on 2026-08-01, dedup_key '1'\n  found:    not due"),
        ([D], None, "  expected: not due\n  found:    threshold 1, crossed_on 2026-08-01, dedup_key '1'"),
        ([D], (1, D, "one"), "  crossed_on  2026-08-01\n  dedup_key   'one' expected, found '1'"),
    ],
)
def test_a_difference_is_shown_side_by_side(
    activities: list[date], expected: tuple[int, date, str] | None, shown: str
) -> None:
    """ "assert False" would send the author to the database to look."""
    with pytest.raises(AssertionError) as caught:
        assert_due(registry()["milestone"], activities=activities, on=D, expected=expected)
    assert str(caught.value).endswith(shown)


def test_a_select_that_breaks_the_contract_is_reported_before_it_is_installed() -> None:
    """In a run a mentor with two rows would be counted twice."""

    def twice(page: Page, configuration: Configuration, evaluation_date: EvaluationDate) -> Matches:
        one = registry()["inactivity"].matches(page, configuration, evaluation_date)
        return union_all(one, one)  # type: ignore[return-value]

    def personal(page: Page, configuration: Configuration, evaluation_date: EvaluationDate) -> Matches:
        found = registry()["inactivity"].matches(page, configuration, evaluation_date)
        name: ColumnElement[str] = literal_column("(SELECT max(full_name) FROM scenario.peer_mentors)")
        return found.where(name.is_not(None), true())

    joined_on = date(2026, 7, 2)
    with pytest.raises(AssertionError, match="2 rows for one mentor, at most one is allowed"):
        assert_due(Scenario("twice", "Twice.", (30,), 7, 1, twice), joined_on=joined_on, on=D, expected=None)
    with pytest.raises(Exception, match="permission denied for table peer_mentors"):
        assert_due(Scenario("personal", "Named.", (30,), 7, 1, personal), joined_on=joined_on, on=D, expected=None)


def test_a_scenario_put_into_the_folder_needs_no_other_change(tmp_path: Path) -> None:
    """The documentation promises it: rule, schedule and the rules of the house, with no other file touched."""
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    module = copy / PACKAGE.name / "scenarios" / "anniversary.py"
    module.write_text(example("SCENARIO = Scenario("), encoding="utf-8")
    shows = """
import scenario_pipeline
from datetime import date
from scenario_pipeline.definitions import defs
from scenario_pipeline.scenarios import registry
from scenario_pipeline.testing import assert_due

assert_due(registry()["anniversary"], joined_on=date(2025, 8, 1), on=date(2026, 8, 1),
           expected=(365, date(2026, 8, 1), "365"))
print(scenario_pipeline.__file__)
print(*registry())
for schedule in defs.schedules:
    print(schedule.name, schedule.cron_schedule, schedule.default_status.value)
"""
    done = python("-W", "ignore", "-c", shows, folders=[copy], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        str(copy / PACKAGE.name / "__init__.py"),
        "anniversary certification_expiry inactivity milestone",
        "scenario_scheduler_schedule 0 * * * * RUNNING",
        "anniversary_schedule 0 * * * * STOPPED",
        "certification_expiry_schedule 30 6 * * * STOPPED",
        "inactivity_schedule 10 6 * * * STOPPED",
        "milestone_schedule 20 * * * * STOPPED",
    ]

    [rules] = (PROJECT / "scenario_pipeline_tests").rglob("test_house_rules.py")
    (copy / "README.md").write_bytes((PROJECT / "README.md").read_bytes())
    beside = copy / rules.relative_to(PROJECT)
    beside.parent.mkdir(parents=True)
    beside.write_bytes(rules.read_bytes())
    checked = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "one_way or drawer or what_it_is_for")
    done = python(*checked, "--rootdir", str(copy), str(beside), folders=[copy], cwd=copy)
    assert done.returncode == 0, done.stdout


def test_a_scenario_may_not_take_the_name_of_the_schedule_of_all() -> None:
    """Dagster would refuse both, and nobody would be evaluated."""
    with pytest.raises(ValueError, match="not be scenario_scheduler"):
        Scenario("scenario_scheduler", "All.", (1,), 7, 1, registry()["milestone"].matches)


def test_the_cron_of_a_scenario_that_cannot_work_is_one_sentence() -> None:
    """It names the scenario: its author is not the one who reads the sentence."""
    with pytest.raises(UserError, match=r"^The cron of the scenario anniversary must be a cron expression"):
        checked_cron("now and then", "The cron of the scenario anniversary")
