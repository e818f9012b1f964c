"""The README's examples and the scenario guide's, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text

from scenario_pipeline.cli import main
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import (
    DAY,
    FIRST_WINDOW,
    D,
    Mentor,
    insert_mentors,
    insert_organisation,
    mentor_id,
)
from scenario_pipeline_tests.support.project import PROJECT, README
from scenario_pipeline_tests.support.server import SCHEDULERS, as_scheduler
from scenario_pipeline_tests.support.stranger import stranger_accepts

SCENARIO_GUIDE = (PROJECT / "docs" / "how-to" / "write-a-scenario.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.M | re.S)


def test_the_first_two_blocks_are_the_two_commands() -> None:
    """CI and newcomers paste them: one ends in the job, the other in the tests."""
    first, second = blocks("sh")[:2]
    assert first.splitlines()[-1] == ".venv/bin/scenario-pipeline run --demo"
    assert second.splitlines()[-1] == ".venv/bin/python -m pytest"
    for block in (first, second):
        installers = [line for line in block.splitlines() if " install " in line]
        assert installers
        assert all(line.endswith(">&2 &&") and "pip install --quiet" in line for line in installers)


def test_the_commands_it_shows_exist() -> None:
    shown = re.findall(r"\.venv/bin/scenario-pipeline ([a-z]+)(?: ([a-z]+))?", "".join(blocks("sh")))
    assert len(shown) >= 6
    for command, verb in shown:
        arguments = [command, verb] if command in ("db", "events") else [command]
        assert CliRunner().invoke(main, [*arguments, "--help"]).exit_code == 0


def test_every_link_leads_to_a_page() -> None:
    """A reader follows them on a code host, in a fork and in an older checkout."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    relative = [link for link in links if not link.startswith("https://")]
    assert len(relative) >= 10
    assert [link for link in relative if not (link.startswith("docs/") and (PROJECT / link).is_file())] == []
    assert "![" not in README


def test_the_description_of_the_package_shows_commands_that_exist_and_no_relative_link() -> None:
    """A package index has no other pages: a relative link leads nowhere, and a wrong command stops a reader."""
    description = (PROJECT / "PACKAGE.md").read_text(encoding="utf-8")
    assert [link for link in re.findall(r"\]\(([^)]+)\)", description) if not link.startswith("https://")] == []
    shown = re.findall(r"^scenario-pipeline ((?:db )?[a-z]+)", "".join(blocks("sh", description)), flags=re.M)
    assert len(shown) >= 5
    for command in shown:
        assert CliRunner().invoke(main, [*command.split(), "--help"]).exit_code == 0


@pytest.fixture
def with_the_example_installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which a package of one's own declares the guide's scenario."""
    [source] = [block for block in blocks("python", SCENARIO_GUIDE) if "SCENARIO = Scenario(" in block]
    [entry_point] = blocks("toml", SCENARIO_GUIDE)
    group, name, target = re.findall(r'entry-points\."(.+)"\]\n(\w+) = "(.+)"', entry_point)[0]
    package, module = target.split(":")[0].split(".")
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / f"{module}.py").write_text(source)
    info = tmp_path / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return inherited | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}", "SCENARIO_HOME": str(tmp_path / "home")}


@pytest.mark.parametrize("way", SCHEDULERS)
def test_the_example_scenario_dispatches_without_a_line_changed_elsewhere(
    with_the_example_installed: dict[str, str], database_url: str, dagster_url: str, engine: Engine, way: str
) -> None:
    """Adding a scenario is adding a module and a configuration row; the example in the guide proves it."""
    with engine.begin() as connection:
        insert_organisation(connection)
        insert_mentors(connection, [Mentor(1, joined_on=D - 730 * DAY), Mentor(2, joined_on=D - 700 * DAY)])
    environment = with_the_example_installed | {"SCENARIO_DAGSTER_DATABASE_URL": dagster_url}

    def command(url: str, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "scenario_pipeline", *arguments],
            env=environment | {"SCENARIO_DATABASE_URL": url},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout

    command(database_url, "db", "upgrade")
    arguments = ("--date", D.isoformat(), "--dispatch-mode", "live", "--scenario", "anniversary")
    log = command(as_scheduler(database_url, way), "run", *arguments)
    stranger_accepts(log)
    assert json.loads(log.splitlines()[-1])["dispatched_by_scenario"] == {"anniversary": 1}
    assert sent(engine) == [
        (mentor_id(1), "anniversary", D, FIRST_WINDOW, "730", 730, D),
    ]
    with engine.connect() as connection:
        rows = connection.execute(text(
            "SELECT thresholds, lookback_days, cooldown_days FROM scenario.scenario_evaluation_config "
            "WHERE scenario_type = 'anniversary'"))  # fmt: skip
        assert [tuple(row) for row in rows] == [([365, 730, 1825], 7, 1)]
