"""Variables that are no settings are warned of, and time zones are those that every machine knows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from zoneinfo import TZPATH, available_timezones

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine

from scenario_pipeline.cli import main
from scenario_pipeline.errors import UserError
from scenario_pipeline.loading.merge import import_folder
from scenario_pipeline.settings import (
    UNREAD_VARIABLES,
    VARIABLES,
    Settings,
    is_timezone,
    unknown_variables,
    unread_variables,
)

PACKAGE = Path(__file__).resolve().parent.parent.parent / "scenario_pipeline"
SETTINGS_PAGE = (PACKAGE.parent / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SCENARIO_PAGESIZE", "SCENARIO_PAGE_SIZE"),
        ("SCENARIO_TIME_BUDGET", "SCENARIO_TIME_BUDGET_SECONDS"),
        ("SCENARIO_DATABASE", "SCENARIO_DATABASE_URL"),
        ("SCENARIO_DB_URL", "SCENARIO_DATABASE_URL"),
        ("SCENARIO_TZ", "SCENARIO_TIMEZONE"),
        ("SCENARIO_timezone", "SCENARIO_TIMEZONE"),
        ("SCENARIO_TOKEN", "SCENARIO_ENGINE_TOKEN"),
        ("SCENARIO_DAGSTER_URL", "SCENARIO_DAGSTER_DATABASE_URL"),
    ],
)
def test_a_variable_that_is_no_setting_is_named_with_the_one_that_is_meant(name: str, nearest: str) -> None:
    """A misspelt time budget is 30 seconds, and nobody knows why."""
    assert list(unknown_variables({name: "value", "PATH": "/bin"})) == [(name, nearest)]


@pytest.mark.parametrize(
    "name",
    [
        *sorted(VARIABLES),
        "SCENARIOS",
        "MY_SCENARIO_HOME",
    ],
)
def test_a_setting_is_not_warned_of(name: str) -> None:
    """The negative twin: a warning about what works is soon read by nobody."""
    assert list(unknown_variables({name: "value"})) == []
    assert list(unread_variables({name: "value"})) == []


@pytest.mark.parametrize(
    "name", [*sorted(UNREAD_VARIABLES), "SCENARIO_ENDPOINT_CRM_URL", "SCENARIO_ENDPOINT_OF_THE_CRM_2_SECRETS"]
)
def test_a_setting_that_nothing_reads_yet_is_not_misspelt_but_has_no_effect(name: str) -> None:
    """Alerts that were set up and never come are worse than none."""
    assert list(unknown_variables({name: "value"})) == []
    assert list(unread_variables({name: "value", "PATH": "/bin"})) == [name]
    assert list(unread_variables({name: " "})) == []


def test_an_empty_variable_is_not_warned_of_and_no_name_can_break_a_line() -> None:
    """Compose files pass on what nobody has set."""
    assert list(unknown_variables({"SCENARIO_PAGESIZE": " "})) == []
    [(name, _)] = unknown_variables({"SCENARIO_\x1b[31m\nÅ" + "x" * 10_000: "value"})
    assert re.fullmatch(r"SCENARIO_\?\[31m\?\?x+", name)
    assert len(name) == 100


def test_each_variable_that_is_read_or_written_about_is_a_setting() -> None:
    """A setting that the code reads and warns of at once would be worse than none."""
    read = set(re.findall(r'get\("(SCENARIO_\w+)"\)', (PACKAGE / "settings.py").read_text(encoding="utf-8")))
    told = set(re.findall(r"\bSCENARIO_[A-Z_]+[A-Z]\b", SETTINGS_PAGE))
    assert read == VARIABLES
    assert told - VARIABLES - UNREAD_VARIABLES == set()


def test_the_command_line_warns_once_on_stderr_and_doctor_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """stdout is for machines, and the warning for whoever set it."""
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path))
    monkeypatch.setenv("SCENARIO_PAGESIZE", "s3cret")
    warning = "Warning: SCENARIO_PAGESIZE is not a setting and has no effect. Did you mean SCENARIO_PAGE_SIZE?\n"
    done = CliRunner().invoke(main, ["events", "schema"])
    assert (done.exit_code, done.stderr) == (0, warning)
    examined = CliRunner().invoke(main, ["doctor", "--json"])
    assert examined.stderr.count("Warning") == 1
    [found] = [f for f in json.loads(examined.stdout)["findings"] if f["check"] == "variables"]
    assert found == {
        "check": "variables",
        "status": "problem",
        "finding": "SCENARIO_PAGESIZE has no effect: no setting has that name.",
        "remedy": "unset SCENARIO_PAGESIZE, or write SCENARIO_PAGE_SIZE",
    }
    assert "s3cret" not in done.output + examined.output
    monkeypatch.delenv("SCENARIO_PAGESIZE")
    assert CliRunner().invoke(main, ["events", "schema"]).stderr == ""


def test_a_setting_that_nothing_reads_yet_is_named_by_the_command_line_and_by_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person waits for alerts that no part of this release sends."""
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path))
    monkeypatch.setenv("SCENARIO_ALERT_URL", "https://s3cret.example")
    sentence = "SCENARIO_ALERT_URL is a setting of a part that is not built yet and has no effect."
    done = CliRunner().invoke(main, ["events", "schema"])
    assert (done.exit_code, done.stderr) == (0, f"Warning: {sentence}\n")
    examined = CliRunner().invoke(main, ["doctor", "--json"])
    [found] = [f for f in json.loads(examined.stdout)["findings"] if f["check"] == "variables"]
    assert found == {"check": "variables", "status": "ok", "finding": sentence, "remedy": None}
    monkeypatch.setenv("SCENARIO_PAGESIZE", "400")
    [found] = [
        f
        for f in json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)["findings"]
        if f["check"] == "variables"
    ]
    assert found == {
        "check": "variables",
        "status": "problem",
        "finding": f"SCENARIO_PAGESIZE has no effect: no setting has that name. {sentence}",
        "remedy": "unset SCENARIO_PAGESIZE, or write SCENARIO_PAGE_SIZE",
    }
    assert "s3cret" not in done.output + examined.output


PSEUDO = ["Factory", "localtime", "posixrules", "posix/Europe/Oslo", "right/Europe/Oslo", "posix/UTC", "right/UTC"]


@pytest.mark.parametrize("zone", [*PSEUDO, "Europe", "zone.tab", "tzdata.zi", "leapseconds", "europe/Oslo", "UTC/", ""])
def test_what_is_no_zone_of_its_own_is_refused(zone: str) -> None:
    """`localtime` is another zone on another machine, and `right/` is half a minute off."""
    assert not is_timezone(zone)
    if zone:
        with pytest.raises(UserError, match=r"^SCENARIO_TIMEZONE must be an IANA time zone name"):
            Settings.from_environment({"SCENARIO_TIMEZONE": zone})


def test_all_zones_that_python_lists_are_taken_and_no_file_beside_them() -> None:
    """The rule is cheaper than the list, and must be the same."""
    listed = {name for name in available_timezones() if name.partition("/")[0] not in {"posix", "right"}} - set(PSEUDO)
    files = {
        str(path.relative_to(root))
        for root in map(Path, TZPATH)
        if root.is_dir()
        for path in root.rglob("*")
        if path.is_file()
    }
    assert {name for name in files | listed if is_timezone(name)} == listed


@pytest.mark.parametrize("zone", PSEUDO)
def test_an_organisation_in_such_a_zone_is_refused_when_it_is_imported(
    engine: Engine, tmp_path: Path, zone: str
) -> None:
    """What `SCENARIO_TIMEZONE` may not be, an organisation's may not be either."""
    for name, lines in {
        "organisations": ["id,name,timezone", f"0190c0de-0000-7000-8000-000000000001,Ours,{zone}"],
        "mentors": ["id,organisation_id,status,full_name,email,phone,locale,joined_on"],
        "activities": ["user_id,activity_type,activity_date"],
        "certifications": ["user_id,certification_type,expires_on"],
    }.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"organisations\.csv, line 2, column timezone: write an IANA time zone"):
        import_folder(engine, tmp_path)
