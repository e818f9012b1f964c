"""What the reference pages list, compared with the code."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest

from scenario_pipeline.cli import main
from scenario_pipeline_tests.support.definitions import definitions
from scenario_pipeline_tests.support.deployment import DOCS, page
from scenario_pipeline_tests.support.project import PROJECT


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield each command with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield " ".join([*path, name]), command


def test_the_page_of_commands_lists_every_command() -> None:
    """A command that nobody can find is not used."""
    listed = re.findall(r"^\| `([a-z ]+)` \|", page("reference/commands").partition("\n## ")[0], flags=re.M)
    assert sorted(listed) == sorted(name for name, _ in commands(main))


@pytest.mark.parametrize("name", [name for name, command in commands(main) if len(command.params) > 0])
def test_the_page_of_commands_lists_every_option(name: str) -> None:
    """An option of last year sends people to an error message."""
    options = {option for param in dict(commands(main))[name].params for option in param.opts if option[:2] == "--"}
    if options:
        section = page(f"reference/commands#{name}")
        assert set(re.findall(r"^\| `(--[a-z-]+)", section, flags=re.M)) == options


def test_every_citation_of_the_contract_leads_to_a_section() -> None:
    """Whoever follows "contract section 5" must find a section 5."""
    sections = set(re.findall(r"^## (\d+)\. ", page("reference/contract"), flags=re.M))
    cited: set[str] = set()
    for path in (PROJECT / "scenario_pipeline").rglob("*.py"):
        for numbers in re.findall(r"contract sections? ([\d, and]*\d)", path.read_text(encoding="utf-8")):
            cited |= set(re.findall(r"\d+", numbers))
    assert len(cited) >= 6
    assert cited <= sections


def test_the_page_of_dagster_lists_every_sensor_and_check() -> None:
    """A sensor that is on and on no page deletes or closes things, and nobody knows who did it."""
    of_code = definitions()
    sensors = [sensor.name for sensor in of_code.sensors or []]
    checks = [key.name for asset in of_code.asset_checks or [] for key in asset.check_keys]
    for title, names in {"Sensors": sensors, "Asset checks": checks}.items():
        listed = re.findall(r"^\| `(\w+)` \|", page(f"reference/dagster#{title}"), flags=re.M)
        assert len(names) >= 3
        assert sorted(listed) == sorted(names)


def test_the_first_page_of_the_docs_lists_every_other_page() -> None:
    """Its lists are the site's navigation, and the way in on a code host."""
    listed = re.findall(r"\]\(([^)]+\.md)\)", page("index"))
    pages = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    assert sorted([*listed, "index.md"]) == sorted(pages)
