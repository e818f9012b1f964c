"""The guide's clock, upgrade, backup and launchers, run as they stand there."""

import json
import re
import tomllib
import uuid
from importlib.metadata import version
from pathlib import Path

import psycopg
import pytest
import yaml
from click.testing import CliRunner
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema
from sqlalchemy import Engine, text

from scenario_pipeline.cli import main
from scenario_pipeline.doctor.database import _CHECKS
from scenario_pipeline.doctor.findings import Status
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.roles import OWNER, SCHEDULER
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.deployed import (
    ADMINISTRATOR,
    another_database,
    connected,
    findings,
    in_database,
    no_superuser,
    sent,
    upgraded,
)
from scenario_pipeline_tests.support.deployment import (
    DOCS,
    PASSWORD,
    Deployment,
    blocks,
    execute,
    page,
    sql,
)
from scenario_pipeline_tests.support.people import (
    DAY,
    D,
    Mentor,
    insert_mentors,
    insert_organisation,
)
from scenario_pipeline_tests.support.project import PROJECT, README
from scenario_pipeline_tests.support.runs import Log, make_request, run_invocation


@no_superuser
def test_the_clocks_role_may_ask_for_runs_and_nothing_else(installation: Deployment) -> None:
    """What pg_cron runs is written down in a table that others can read and perhaps write."""
    execute(installation.url(ADMINISTRATOR), f"CREATE ROLE scenario_clock LOGIN PASSWORD '{PASSWORD}'")
    [granting] = [block for block in sql("how-to/pg-cron", OWNER) if "GRANT" in block]
    execute(installation.url(OWNER), granting)
    [scheduling] = sql("how-to/pg-cron", "scenario_clock")
    [called] = re.findall(r"'(SELECT scenario\..+?)'\)", scheduling)
    assert len(execute(installation.url("scenario_clock"), called)) == 1
    assert execute(installation.url(OWNER), "SELECT requested_by FROM scenario.scheduler_run_requests") == [
        ("scenario_clock",)
    ]
    for forbidden in (
        "SELECT * FROM scenario.scheduler_run_requests",
        "SELECT * FROM scenario.organisations",
        "SELECT scenario.active_mentors('2026-01-01', '{}')",
        "SELECT scenario.remove_old_replies('1 day', 1)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(installation.url("scenario_clock"), forbidden)


# Upgrade, rollback, backup


def test_an_upgrade_that_fails_at_its_end_has_changed_nothing(server: EmbeddedPostgres) -> None:
    """Half an upgrade would fit neither the old code nor the new."""
    name = f"failing_{uuid.uuid4().hex}"
    url = server.url(name)
    database.create_database(server.url("postgres"), name)
    # Granting comes last.
    execute(
        url,
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not today'; END$$;\n"
        "CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('GRANT') EXECUTE FUNCTION refuse();\n",
    )
    engine = database.connect(url)
    with pytest.raises(Exception, match="not today"):
        upgrade(engine)
    with engine.connect() as connection:
        assert database.schema_version(connection) is None
        assert connection.execute(text("SELECT to_regnamespace('scenario')")).scalar_one() is None
    engine.dispose()


@no_superuser
def test_a_dump_restored_elsewhere_remembers_what_was_sent_and_an_older_one_does_not(
    installation: Deployment, deployed: Deployment, tmp_path: Path
) -> None:
    """A restored database that forgot one notification sends it again."""
    with in_database(installation) as connection:
        insert_organisation(connection)
        quiet = [Mentor(n, activities=[D - (30 + n) * DAY]) for n in range(3)]
        insert_mentors(connection, [*quiet, Mentor(9, activities=[D])])
    dumping, _, restoring = blocks("how-to/upgrade-backup-restore", "sh")
    older = dumping.splitlines()[0].replace("=scenario.dump", "=older.dump")
    arguments = ("run", "--dispatch-mode", "live", "--date")
    with connected(installation, SCHEDULER) as engine:
        run_invocation(engine, make_request(D - DAY))
    installation.shell(older)
    installation.command(*arguments, D.isoformat())
    remembered = sent(installation)
    assert {row[2] for row in remembered} == {D - DAY, D}
    installation.shell(dumping)

    restored = another_database(deployed, tmp_path / "restored", dagster=True)
    for name in ("scenario.dump", "dagster.dump"):
        (installation.folder / name).rename(restored.folder / name)
    restored.shell(restoring)
    assert sent(upgraded(restored)) == remembered
    stdout, _ = restored.command(*arguments, D.isoformat())
    completed = json.loads(stdout.splitlines()[-1])
    assert (completed["total_dispatched"], completed["suppressed_by_reason"]) == (0, {"duplicate": len(remembered)})
    assert [finding.status for finding in findings(restored) if finding.check == "roles"] == [Status.OK]

    # What the page warns of: an older one sends again, and under the same names.
    forgetful = another_database(deployed, tmp_path / "forgetful")
    (installation.folder / "older.dump").rename(forgetful.folder / "scenario.dump")
    forgetful.shell(restoring.splitlines()[0])
    assert len(sent(forgetful)) < len(remembered)
    with connected(forgetful) as engine:
        run_invocation(engine)
    assert [row[:2] + row[4:] for row in sent(forgetful)] == [row[:2] + row[4:] for row in remembered]


def test_the_commands_of_an_upgrade_exist_and_install_as_the_readme_does() -> None:
    """Typed under pressure, at night, from this page."""
    [block] = blocks("how-to/upgrade-backup-restore#Upgrade", "sh")
    installing = re.findall(r"^(\.venv/bin/pip .+)$", block, flags=re.M)
    assert len(installing) == 2
    assert all(line in README for line in installing)
    assert f"git checkout v{version('scenario-pipeline')}" in block
    units = set(re.findall(r"^# /etc/systemd/system/(.+)\.service$", page("how-to/install"), flags=re.M))
    for line in re.findall(r"^systemctl \w+ (.+)$", block, flags=re.M):
        assert set(line.split()) == units


def test_every_command_and_variable_of_the_pages_exists() -> None:
    """A page that sends people to a command of last year is worse than none; of links, the site's build takes care."""
    # The contract is ahead of the code, and says so.
    pages = {path: path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md") if path.name != "contract.md"}
    text = "".join(pages.values())
    shown = re.findall(r"scenario-pipeline (run|up|demo|import|engine|doctor|db \w+|events \w+)", text)
    assert len(set(shown)) >= 5
    for command in set(shown):
        assert CliRunner().invoke(main, [*command.split(), "--help"]).exit_code == 0, command
    settings = page("reference/settings")
    for variable in set(re.findall(r"SCENARIO_[A-Z_]+", text)):
        assert variable in settings


# Daemon and run workers, logs, doctor


def test_the_launchers_fit_into_the_projects_dagster_yaml() -> None:
    """An instance that does not load stops the daemon, the web server and every run at once."""
    own = yaml.safe_load((PROJECT / "dagster.yaml").read_text(encoding="utf-8"))
    snippets = blocks("how-to/several-machines", "yaml")
    assert len(snippets) == 2
    for snippet in snippets:
        merged = own | yaml.safe_load(snippet)
        assert len(merged) == len(own) + 1
        checked = process_config(dagster_instance_config_schema(), merged)
        assert checked.success, checked.errors
    pinned = re.findall(r"pip install (dagster-\w+)==([\d.]+)", page("how-to/several-machines"))
    # Dagster's libraries pin each other: another release would not install beside the locked ones.
    assert pinned == [(name, version("dagster-postgres")) for name in ("dagster-k8s", "dagster-docker")]
    assert f"scenario-pipeline:{version('scenario-pipeline')}" in page("how-to/several-machines")


def test_events_are_told_from_dagsters_own_lines(engine: Engine, tmp_path: Path) -> None:
    """A log shipper is set up once, by this page; what it does not see nobody sees."""
    log = Log()
    run_invocation(engine, log=log)
    [validating] = blocks("how-to/logs", "sh")
    here = Deployment("0", tmp_path)
    file = tmp_path / "log" / "daemon.log"
    file.parent.mkdir()
    of_dagster = b"2026-11-24 06:00:00 +0000 - dagster.daemon - INFO - Instance is configured\n"
    file.write_bytes(b"".join([of_dagster, *log.lines, b"something else\n"]))
    assert here.shell(validating)[1] == "1 invocation, 0 violations.\n"
    file.write_bytes(b"".join([of_dagster, *log.lines[:-1]]))
    assert here.shell(validating, status=1)[1] == "1 invocation, 1 violation.\n"
    [vector] = blocks("how-to/logs", "toml")
    assert tomllib.loads(vector)["sinks"]["logs"]["inputs"] == ["scenario_events"]


def test_the_page_tells_of_every_check_of_doctor() -> None:
    """A finding that cannot be looked up is a riddle."""
    told = re.findall(r"^\| `(\w+)` \|", page("reference/doctor"), flags=re.M)
    of_commands = ["dagster_instance", "asset_checks", "variables", "trigger_engine", "web_server"]
    assert told == ["database_connection", *_CHECKS, *of_commands]
