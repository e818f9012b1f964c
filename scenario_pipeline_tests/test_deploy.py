"""The guides' examples, run as they stand there."""

from __future__ import annotations

import json
import re
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import psycopg
import pytest
import yaml
from click.testing import CliRunner
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema
from sqlalchemy import Connection, Engine, text

from scenario_pipeline.cli import main
from scenario_pipeline.doctor.database import _CHECKS, examine_database
from scenario_pipeline.doctor.findings import YOUR_OWN_TABLES, Finding, Status
from scenario_pipeline.errors import SystemicError
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import database, source
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.roles import OWNER, READER, SCHEDULER
from scenario_pipeline.storage.source import Access
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.deployment import (
    DOCS,
    PASSWORD,
    Deployment,
    blocks,
    deploy,
    execute,
    make_roles,
    page,
    sql,
)
from scenario_pipeline_tests.support.invariants import Notification, notifications
from scenario_pipeline_tests.support.people import (
    DAY,
    FIRST_WINDOW,
    D,
    Mentor,
    insert_mentor,
    insert_mentors,
    insert_organisation,
)
from scenario_pipeline_tests.support.project import PROJECT, README
from scenario_pipeline_tests.support.runs import Log, make_request, run_invocation
from scenario_pipeline_tests.support.stranger import stranger_accepts

ADMINISTRATOR = "administrator"
# By what the administrator may: how the scheduler reads the source.
ADMINISTRATORS = {"SUPERUSER": Access.VIEWS, "CREATEROLE CREATEDB": Access.FUNCTIONS}
# For what does not depend on it: the one who may less.
no_superuser = pytest.mark.parametrize("rights", ["CREATEROLE CREATEDB"], indirect=True)


@pytest.fixture(scope="module", params=ADMINISTRATORS)
def rights(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def deployed(rights: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server of its own, since roles are the server's, on which an administrator followed the page."""
    folder = tmp_path_factory.mktemp("deployed")
    server = EmbeddedPostgres(folder / "postgres")
    server.start()
    try:
        yield deploy(server, folder / "machine", ADMINISTRATOR, rights)
    finally:
        server.stop()


def another_database(deployed: Deployment, folder: Path, *, dagster: bool = False) -> Deployment:
    """Return an installation beside the first, on the same server, with an empty database of its own, or both."""
    another = Deployment(deployed.port, folder / "machine", scenario=f"scenario_{uuid.uuid4().hex}")
    execute(deployed.url(ADMINISTRATOR, "postgres"), f"CREATE DATABASE {another.scenario}")
    if dagster:
        another.dagster = f"dagster_{uuid.uuid4().hex}"
        execute(deployed.url(ADMINISTRATOR, "postgres"), f"CREATE DATABASE {another.dagster} OWNER {SCHEDULER}")
    make_roles(another, ADMINISTRATOR)
    another.write_files()
    return another


@pytest.fixture
def installation(deployed: Deployment, tmp_path: Path) -> Deployment:
    """An upgraded installation of this test's own."""
    return upgraded(another_database(deployed, tmp_path))


@contextmanager
def connected(deployment: Deployment, role: str = OWNER) -> Iterator[Engine]:
    """Yield an engine as a role of the installation."""
    engine = database.connect(deployment.url(role))
    try:
        yield engine
    finally:
        engine.dispose()


def upgraded(deployment: Deployment, role: str = OWNER) -> Deployment:
    """Upgrade an installation as a role."""
    with connected(deployment, role) as engine:
        upgrade(engine)
    return deployment


@contextmanager
def in_database(deployment: Deployment, role: str = OWNER) -> Iterator[Connection]:
    """Yield a connection inside a transaction, as a role of the installation."""
    with connected(deployment, role) as engine, engine.begin() as connection:
        yield connection


def sent(deployment: Deployment) -> list[Notification]:
    """Return all notifications of an installation."""
    with in_database(deployment) as connection:
        return notifications(connection)


def access_of_the_scheduler(deployment: Deployment) -> Access:
    with in_database(deployment, SCHEDULER) as connection:
        return source.access_of(connection)


# Roles


def test_an_administrator_of_either_kind_gets_an_installation_that_runs(deployed: Deployment, rights: str) -> None:
    """Where nobody is a superuser, the page must lead to a scheduler that sees every organisation all the same."""
    [upgrade_and_run] = [
        block for block in blocks("how-to/install#Schema and first run", "sh") if "db upgrade" in block
    ]
    upgrading, running = upgrade_and_run.splitlines()[1:]
    deployed.shell(upgrading)
    owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'scenario'::regnamespace"
    assert execute(deployed.url(OWNER), owners) == [(OWNER,)]
    with in_database(deployed) as connection:
        for n in (1, 2):
            insert_organisation(connection, n)
            insert_mentor(connection, n, organisation=n)
    stdout, _ = deployed.shell(running)
    log = "".join(line + "\n" for line in stdout.splitlines() if line.startswith('{"timestamp"'))
    stranger_accepts(log)
    completed = json.loads(log.splitlines()[-1])
    assert (completed["completed"], completed["total_evaluated"]) == (True, 2)
    findings = stdout.removesuffix(log)
    assert re.findall(r"^(?!ok ).*", findings, flags=re.M) == [""]
    assert access_of_the_scheduler(deployed) is ADMINISTRATORS[rights]
    told = "its own rights" if ADMINISTRATORS[rights] is Access.VIEWS else "the functions of the owner"
    assert f"sees all rows of the source by {told}" in findings


def test_a_scheduler_whose_attribute_was_taken_away_reads_through_functions(
    installation: Deployment, rights: str
) -> None:
    """Security asks for it one day; the next run must neither fail nor leave anybody out."""
    [block] = sql("how-to/install", "a superuser")
    if rights != "SUPERUSER":
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(installation.url(ADMINISTRATOR), block)
        return
    with in_database(installation) as connection:
        insert_organisation(connection)
        insert_mentor(connection, activities=[D - 30 * DAY])
    execute(installation.url(ADMINISTRATOR), block)
    try:
        assert access_of_the_scheduler(installation) is Access.FUNCTIONS
        with connected(installation, SCHEDULER) as engine:
            report = run_invocation(engine)
        assert report.totals()["dispatched_by_scenario"] == {"inactivity": 1}
    finally:
        execute(installation.url(ADMINISTRATOR), f"ALTER ROLE {SCHEDULER} BYPASSRLS")


def test_an_administrator_who_upgrades_leaves_the_schema_to_its_owner(deployed: Deployment, tmp_path: Path) -> None:
    """Otherwise the next release's `db upgrade`, run as scenario_owner as the page says, is refused."""
    installation = upgraded(another_database(deployed, tmp_path), ADMINISTRATOR)
    upgraded(installation, OWNER)
    with in_database(installation) as connection:
        assert database.schema_version(connection) == database.code_version()


@no_superuser
def test_a_reader_sees_reports_and_no_people(installation: Deployment) -> None:
    """A dashboard's password lies about; it must not open the list of names."""
    with psycopg.connect(installation.url(READER), autocommit=True) as connection:
        for table in ("scenario_notifications", "scheduler_runs", "scheduler_run_pages", "organisations"):
            connection.execute(f"SELECT * FROM scenario.{table}".encode())
        for table in ("peer_mentors", "mentor_activities", "source_mentors"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT * FROM scenario.{table}".encode())


def counted_by_app(installation: Deployment, setting: str) -> int:
    """Return how many mentors an app user sees after a statement of its own."""
    [(mentors,)] = execute(installation.url("app"), f"{setting};\nSELECT count(*) FROM scenario.peer_mentors")
    return int(mentors)


@no_superuser
def test_app_users_see_their_own_organisation_and_nobody_else_sees_any(installation: Deployment) -> None:
    """The app's database user is everybody's: what it may see must hang on whom it works for."""
    execute(installation.url(ADMINISTRATOR), f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
    first, second = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
    with in_database(installation) as connection:
        for n, (organisation, mentors) in enumerate([(first, 2), (second, 3)]):
            connection.execute(
                text("INSERT INTO scenario.organisations VALUES (:id, 'one of two', 'Europe/Oslo')"),
                {"id": organisation},
            )
            connection.execute(
                text(
                    "INSERT INTO scenario.peer_mentors (id, organisation_id, status, full_name, joined_on) SELECT "
                    "lpad(to_hex(10 * :n + i), 32, '0')::uuid, :id, 'active', 'Kari', '2020-01-01' "
                    "FROM generate_series(1, :mentors) i".replace("::", r"\:\:")
                ),
                {"n": n, "id": organisation, "mentors": mentors},
            )
    granting, by_claim = sql("how-to/install", OWNER)
    execute(installation.url(OWNER), granting)
    [as_app] = sql("how-to/install", "app")
    assert execute(installation.url("app"), as_app) == [(2,)]
    assert execute(installation.url("app"), as_app.replace(first, second)) == [(3,)]
    assert counted_by_app(installation, "RESET scenario.organisation_id") == 0
    for table in ("scenario_notifications", "source_mentors", "scheduler_runs"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(installation.url("app"), f"SELECT * FROM scenario.{table}")

    execute(installation.url(OWNER), by_claim)
    upgraded(installation)
    claim = json.dumps({"sub": "somebody", "app_metadata": {"organisation_id": second}})
    assert counted_by_app(installation, f"SET request.jwt.claims = '{claim}'") == 3
    forged = json.dumps({"user_metadata": {"organisation_id": second}})
    assert counted_by_app(installation, f"SET request.jwt.claims = '{forged}'") == 0
    assert counted_by_app(installation, f"SET scenario.organisation_id = '{second}'") == 0


# Your own tables


def key(number: int) -> str:
    """Return the id that the example makes of a number."""
    return str(uuid.UUID(int=number))


# Longer than 32 bits, as keys of real systems are.
LONG = 9_007_199_254_740_993
PEOPLE = f"""
INSERT INTO crm.teams VALUES (7, 'Nord', NULL), (8, 'Syd', 'Europe/Oslo');
INSERT INTO crm.volunteers VALUES
    (1, 7, 'Kari', 'A', '2015-01-01', NULL), (2, 7, 'Ola', 'A', '2015-01-01', false),
    (3, 8, 'Ada', 'A', '2015-01-01', false), (4, 8, 'Per', 'A', '2015-01-01', true),
    (5, 8, 'Eva', 'P', '2015-01-01', false), ({LONG}, 8, 'Liv', 'A', '2015-01-01', false);
INSERT INTO crm.visits VALUES
    (1, 'home', '2023-05-01'), (1, NULL, '{D - 30 * DAY} 12:00+00'),
    (2, 'first', '{D - DAY} 23:30+00'),
    (3, 'home', '2023-05-01'), (3, 'home', '{D - DAY} 12:00+00'),
    (4, 'home', '2023-05-01'), (4, 'home', '{D - 30 * DAY} 12:00+00'),
    (5, 'home', '2023-05-01'), (5, 'home', '{D - 30 * DAY} 12:00+00'),
    ({LONG}, 'home', '2023-05-01'), ({LONG}, 'home', '{D - 90 * DAY} 12:00+00');
INSERT INTO crm.licences VALUES (3, 'first aid', '{D + 30 * DAY} 18:00'), (1, NULL, NULL), (2, 'driving', '2030-01-01');
"""
DUE = [
    (key(1), "inactivity", D, FIRST_WINDOW, f"{D - 30 * DAY}:30", 30, D),
    # At half past eleven in the evening in UTC it is the next day in Oslo.
    (key(2), "milestone", D, FIRST_WINDOW, "1", 1, D),
    (key(3), "certification_expiry", D, FIRST_WINDOW, f"first aid:{D + 30 * DAY}:30", 30, D),
    (key(LONG), "inactivity", D, FIRST_WINDOW, f"{D - 90 * DAY}:90", 90, D),
]


@pytest.fixture
def crm(installation: Deployment) -> Iterator[Deployment]:
    """An installation over the example's foreign tables, made by the page's blocks."""
    execute(installation.url(ADMINISTRATOR), f"CREATE ROLE crm_owner LOGIN PASSWORD '{PASSWORD}'")
    execute(
        installation.url(ADMINISTRATOR), "GRANT crm_owner TO CURRENT_USER;\nCREATE SCHEMA crm AUTHORIZATION crm_owner"
    )
    try:
        there_already, shown = sql("how-to/your-own-tables", "crm_owner")
        for block in (there_already, PEOPLE, shown):
            execute(installation.url("crm_owner"), block)
        [pointed] = sql("how-to/your-own-tables", OWNER)
        execute(installation.url(OWNER), pointed)
        yield installation
    finally:
        execute(installation.url(ADMINISTRATOR), "DROP OWNED BY crm_owner CASCADE;\nDROP ROLE crm_owner")


def test_the_example_of_own_tables_dispatches_exactly_what_is_due(crm: Deployment) -> None:
    """Whoever has mentors in a system of their own copies this; a wrong cast would tell the wrong people."""
    with connected(crm, SCHEDULER) as engine:
        report = run_invocation(engine)
    assert (report.stats.total_evaluated, report.totals()["suppressed_by_reason"]) == (5, {"opted_out": 1})
    assert sent(crm) == DUE
    assert [finding for finding in findings(crm) if finding.status is not Status.OK] == []


@no_superuser
def test_the_commands_work_over_own_tables(crm: Deployment) -> None:
    """The page says to look, to try, and then to run."""
    looking, trying = blocks("how-to/your-own-tables", "sh")[0].splitlines()[1:]
    assert "views: The four source views have the columns" in crm.shell(looking)[0]
    dry, _ = crm.shell(trying)
    assert json.loads(dry.splitlines()[0])["dispatch_mode"] == "dry_run"
    stdout, _ = crm.command("run", "--date", D.isoformat(), "--dispatch-mode", "live")
    stranger_accepts(stdout)
    assert sent(crm) == DUE


def findings(deployment: Deployment) -> list[Finding]:
    """Return what `doctor` finds in the scheduler's database, as the scheduler."""
    settings = Settings.from_environment({"SCENARIO_DATABASE_URL": deployment.url(SCHEDULER)})
    return list(examine_database(settings))


def test_the_crms_own_policies_hold_for_everybody_else(crm: Deployment) -> None:
    """The views open the tables to the scheduler, and to nobody on the way."""
    with psycopg.connect(crm.url(SCHEDULER), autocommit=True) as connection:
        for table in ("teams", "volunteers", "visits", "licences"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT * FROM crm.{table}".encode())
    with (
        psycopg.connect(crm.url(READER), autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT * FROM crm.scenario_mentors")


@no_superuser
def test_a_view_that_is_wrong_is_named_by_doctor_and_stops_a_run(crm: Deployment) -> None:
    """A moment where a date must stand shifts crossings by a day: nothing may be sent by such a view."""
    wrong = "SELECT id, organisation_id, status, joined_on::timestamp AS joined_on, notifications_opt_out"
    [pointed] = sql("how-to/your-own-tables", OWNER)
    assert "SELECT id, organisation_id, status, joined_on, notifications_opt_out" in pointed
    mistaken = pointed.replace("SELECT id, organisation_id, status, joined_on, notifications_opt_out", wrong)
    with pytest.raises(psycopg.errors.InvalidTableDefinition):
        execute(crm.url(OWNER), mistaken)
    execute(crm.url(OWNER), f"DROP VIEW scenario.source_mentors;\n{mistaken}")
    execute(crm.url(OWNER), f"GRANT SELECT ON scenario.source_mentors TO {SCHEDULER}")
    sentence = "column joined_on of the view scenario.source_mentors is timestamp without time zone, and must be date"
    told = [finding for finding in findings(crm) if finding.check == "views"]
    assert told == [Finding("views", Status.PROBLEM, f"The {sentence}.", YOUR_OWN_TABLES)]
    log = Log()
    with connected(crm, SCHEDULER) as engine, pytest.raises(SystemicError):
        run_invocation(engine, log=log)
    assert log.entries[1]["error_message"] == f"the {sentence}: define the view again"
    assert sent(crm) == []


# pg_cron as the clock


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
    assert here.shell(validating)[1] == "0 violations.\n"
    file.write_bytes(b"".join([of_dagster, *log.lines[:-1]]))
    assert here.shell(validating, status=1)[1] == "1 violation.\n"
    [vector] = blocks("how-to/logs", "toml")
    assert tomllib.loads(vector)["sinks"]["logs"]["inputs"] == ["scenario_events"]


def test_the_page_tells_of_every_check_of_doctor() -> None:
    """A finding that cannot be looked up is a riddle."""
    told = re.findall(r"^\| `(\w+)` \|", page("reference/doctor"), flags=re.M)
    assert told == ["database_connection", *_CHECKS, "dagster_instance", "variables", "trigger_engine", "web_server"]
