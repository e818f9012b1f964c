"""The command line as a person or a cron entry uses it: real processes, their streams and exit statuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from click.testing import CliRunner
from dagster import build_run_status_sensor_context
from sqlalchemy import Engine, text

from scenario_pipeline.cli import main
from scenario_pipeline.defs.instance import load_instance
from scenario_pipeline.defs.sensors import close_dead_invocations, lost_runs
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.structured_logger import utc_now
from scenario_pipeline_tests import world
from scenario_pipeline_tests.conftest import COMMUNITY, as_scheduler
from scenario_pipeline_tests.test_scheduler_job import stranger_accepts

PROJECT = Path(__file__).resolve().parent.parent


class Installation:
    """One user's installation: a database with the community in it, Dagster's own database, and a home.

    Its commands may do what the scheduler may, and nothing else; `url` is the administrator's.
    """

    def __init__(self, url: str, dagster_url: str, home: Path) -> None:
        self.url, self.run_url, self.dagster_url, self.home = url, as_scheduler(url), dagster_url, home
        self.engine: Engine = database.connect(url)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
        return inherited | {
            "SCENARIO_DATABASE_URL": self.run_url,
            "SCENARIO_DAGSTER_DATABASE_URL": self.dagster_url,
            "SCENARIO_HOME": str(self.home),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "scenario_pipeline", *arguments],
            env=self.environment,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == status, stderr
        return stdout, stderr

    def run(self, evaluation_date: str, *more: str, status: int = 0) -> dict[str, Any]:
        """Run a past date for real and return the closing entry."""
        arguments = ("run", "--date", evaluation_date, "--dispatch-mode", "live", *more)
        stdout, _ = self.command(*arguments, status=status)
        stranger_accepts(stdout)
        entry: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        return entry

    def check(self) -> None:
        with self.engine.connect() as connection:
            world.check_invariants(connection)

    def block_notifications_of(self, mentor_id: str) -> psycopg.Connection[Any]:
        """Let the page of this mentor wait, until the returned connection is closed, when it writes to them."""
        return self.block(f"INSERT ON scenario.scenario_notifications FOR EACH ROW WHEN (NEW.user_id = '{mentor_id}')")

    def block(self, what: str) -> psycopg.Connection[Any]:
        """Let whatever does this wait, as a trigger says it, until the returned connection is closed."""
        holder = psycopg.connect(self.url, autocommit=True)
        holder.execute("""
            CREATE OR REPLACE FUNCTION scenario.wait() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_advisory_xact_lock(4711);
                RETURN NEW;
            END $$""")
        holder.execute(f"CREATE OR REPLACE TRIGGER wait BEFORE {what} EXECUTE FUNCTION scenario.wait()".encode())
        holder.execute("SELECT pg_advisory_lock(4711)")
        return holder


@pytest.fixture
def installation(community_url: str, dagster_url: str, tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(community_url, dagster_url, tmp_path / "home")
    yield installation
    installation.engine.dispose()


EXPECTED = {
    "2026-08-01": (1298, {"certification_expiry": 8, "inactivity": 9, "milestone": 1}, {}),
    "2026-08-02": (1299, {"certification_expiry": 3, "milestone": 1}, {"duplicate": 14}),
    "2026-08-10": (1301, {"certification_expiry": 7, "inactivity": 8, "milestone": 2}, {}),
    "2026-08-20": (1303, {"certification_expiry": 4, "inactivity": 5}, {}),
}


def totals(completed: dict[str, Any]) -> tuple[int, dict[str, int], dict[str, int]]:
    assert completed["completed"] is True
    assert completed["total_evaluated"] == completed["total_active_mentors"]
    return completed["total_active_mentors"], completed["dispatched_by_scenario"], completed["suppressed_by_reason"]


def everything_in(url: str) -> str:
    """Return every table of a database as text."""
    engine = database.connect(url)
    with engine.connect() as connection:
        tables = connection.execute(text(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"))  # fmt: skip
        content = [
            str(connection.execute(text(f"SELECT string_agg(t::text, E'\\n') FROM {table} t")).scalar())
            for table in tables.scalars()
            if not table.endswith(".peer_mentors")
        ]
    engine.dispose()
    return "\n".join(content)


def test_the_community_gets_exactly_what_is_due_on_each_date_and_leaks_nothing(
    installation: Installation, canaries: Sequence[str]
) -> None:
    """The first real community: who hears of what, day by day, and not one name in anything that is left behind."""
    streams = []
    for evaluation_date, expected in EXPECTED.items():
        stdout, stderr = installation.command("run", "--date", evaluation_date, "--dispatch-mode", "live")
        streams += [stdout, stderr]
        assert totals(json.loads(stdout.splitlines()[-1])) == expected
    again = installation.run("2026-08-20")
    assert (again["total_dispatched"], again["suppressed_by_reason"]) == (0, {"duplicate": 9})
    installation.check()

    stranger_accepts("".join(streams[::2]))
    files = [
        path.read_text(encoding="utf-8", errors="replace") for path in installation.home.rglob("*") if path.is_file()
    ]
    left_behind = "\n".join(
        [*streams, *files, everything_in(installation.dagster_url), everything_in(installation.url)]
    )
    assert [word for word in canaries if word in left_behind] == []


def test_eight_processes_running_one_date_send_everything_once(installation: Installation) -> None:
    """A double click, two daemons and an impatient operator at once: each mentor hears once."""
    runs = [installation.start("run", "--date", "2026-08-01", "--dispatch-mode", "live") for _ in range(8)]
    closing = []
    for process in runs:
        with process:
            stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        stranger_accepts(stdout)
        closing.append(json.loads(stdout.splitlines()[-1]))
    assert sum(entry["total_dispatched"] for entry in closing) == 18
    assert all(entry["total_dispatched"] + entry["total_suppressed"] == 18 for entry in closing)
    assert len(world.sent(installation.engine)) == 18
    installation.check()


@pytest.fixture
def blocked_run(installation: Installation) -> Iterator[subprocess.Popen[str]]:
    """A run that has committed some of its pages and waits in the middle of another."""
    with installation.engine.connect() as connection:
        middle = connection.execute(text("SELECT id::text FROM scenario.peer_mentors ORDER BY id OFFSET 600 LIMIT 1"))
        victim = quiet_mentor_after(installation, middle.scalar_one())
    with installation.block_notifications_of(victim):
        process = installation.start("run", "--date", "2026-08-01", "--dispatch-mode", "live", "--page-size", "100")
        with process:
            world.wait_until_blocked(installation.engine)
            yield process


def quiet_mentor_after(installation: Installation, mentor_id: str) -> str:
    """Return a mentor behind `mentor_id` who is due for `inactivity` on 2026-08-01."""
    with installation.engine.connect() as connection:
        found = connection.execute(
            text("""
                SELECT m.id::text FROM scenario.peer_mentors m WHERE m.status = 'active' AND m.id > :after AND (
                    SELECT max(activity_date) FROM scenario.mentor_activities a
                    WHERE a.user_id = m.id AND a.activity_date <= '2026-08-01') = ANY (
                    SELECT date '2026-08-01' - 30 - day FROM generate_series(0, 6) day) ORDER BY m.id LIMIT 1"""),
            {"after": mentor_id},
        )
        return str(found.scalar_one())


def test_a_killed_run_loses_nothing_and_doubles_nothing(
    installation: Installation, blocked_run: subprocess.Popen[str]
) -> None:
    """Out of memory, a pulled plug, `kill -9`: the next run does the rest, once."""
    blocked_run.kill()
    blocked_run.communicate(timeout=60)
    # The server notices that its client is gone, although the statement still waits.
    world.wait_until(lambda: not world.blocked_backends(installation.engine), "the killed run's backend ends")
    with installation.engine.connect() as connection:
        before = connection.execute(text("SELECT count(*) FROM scenario.scenario_notifications")).scalar_one()
        pages = connection.execute(text("""
            SELECT count(*) FROM scenario.scheduler_run_pages JOIN scenario.scheduler_runs USING (invocation_id)
            WHERE status = 'running'""")).scalar_one()  # fmt: skip
    assert pages > 0
    installation_free(installation)
    again = installation.run("2026-08-01")
    assert before + again["total_dispatched"] == len(world.sent(installation.engine)) == 18
    installation.check()


def test_a_killed_runs_log_is_closed_for_it_exactly_once(
    installation: Installation,
    blocked_run: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A log that stops in the middle is no statement: the daemon writes what the dead process could not."""
    blocked_run.kill()
    before, _ = blocked_run.communicate(timeout=60)
    world.wait_until(lambda: not world.blocked_backends(installation.engine), "the killed run's backend ends")
    for name, value in installation.environment.items():
        monkeypatch.setenv(name, value)
    with load_instance(Settings.from_environment()) as instance:
        run = instance.get_run_by_id(json.loads(before.splitlines()[0])["invocation_id"])
        assert run is not None
        assert run.run_id not in [lost.run_id for lost in lost_runs(instance, utc_now())]
        assert run.run_id in [lost.run_id for lost in lost_runs(instance, utc_now() + timedelta(seconds=95))]

        event = instance.report_run_failed(run)
        context = build_run_status_sensor_context(
            sensor_name="close_dead_invocations", dagster_event=event, dagster_instance=instance, dagster_run=run
        ).for_run_failure()
        capfd.readouterr()
        close_dead_invocations(context)
        after = capfd.readouterr().out
        close_dead_invocations(context)
        assert capfd.readouterr().out == ""
    stranger_accepts(before + after)
    failed, completed = (json.loads(line) for line in after.splitlines())
    assert (failed["event"], completed["completed"]) == ("scheduler_run_failed", False)
    assert completed["total_evaluated"] + failed["remaining_unprocessed_count"] == 1298
    assert completed["pages_processed"] > 0
    installation.check()


def installation_free(installation: Installation) -> None:
    """Drop the trigger that makes a page wait."""
    with psycopg.connect(installation.url, autocommit=True) as connection:
        connection.execute("DROP TRIGGER wait ON scenario.scenario_notifications")


def test_a_terminated_run_closes_its_log_as_partial(
    installation: Installation, blocked_run: subprocess.Popen[str]
) -> None:
    """A deployment stops the container: the page in hand is rolled back, and the log says so before the end."""
    blocked_run.send_signal(signal.SIGTERM)
    stdout, stderr = blocked_run.communicate(timeout=60)
    assert blocked_run.returncode == 3, stderr
    stranger_accepts(stdout)
    partial, completed = (json.loads(line) for line in stdout.splitlines()[-2:])
    assert (partial["event"], partial["reason"]) == ("scheduler_run_partial", "terminated")
    assert completed["total_evaluated"] + partial["remaining_unprocessed_count"] == 1298
    assert "Traceback" not in stderr
    installation.check()


@pytest.mark.parametrize("pages", [3, 20])
def test_a_run_told_to_stop_has_its_whole_log_in_dagsters_capture(installation: Installation, pages: int) -> None:
    """The web UI and the asset check read what was captured; between two steps, nothing is captured any more."""
    process = installation.start("run", "--date", "2026-08-01", "--dispatch-mode", "live", "--page-size", "10")
    with process:
        world.wait_until(lambda: world.number_of_pages(installation.engine) >= pages, "some pages are committed")
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 3, stderr
    [captured] = installation.home.rglob("*.out")
    assert captured.read_text() == stdout


def test_dagsters_database_may_not_be_that_of_another_application(
    installation: Installation, server: EmbeddedPostgres
) -> None:
    """Dagster's migrations would stumble over the other's: the run goes on without a record, and says why."""
    name = f"another_{uuid.uuid4().hex}"
    database.create_database(server.url("postgres"), name)
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('x')")
    installation.dagster_url = server.url(name)
    stdout, stderr = installation.command("run", "--date", "2026-08-01")
    stranger_accepts(stdout)
    assert stderr.splitlines()[0] == (
        "Dagster's database holds the tables of another application: give Dagster a database of its own. "
        "This run will not be seen in the web UI."
    )


def test_a_failed_run_ends_with_status_1_and_one_sentence(installation: Installation) -> None:
    """An operator reads the sentence, not a stack trace."""
    with installation.engine.begin() as connection:
        connection.execute(text("DELETE FROM scenario.alembic_version"))
    stdout, stderr = installation.command("run", status=1)
    stranger_accepts(stdout)
    assert stderr.splitlines()[-1] == (
        "Failed (database_error): the database has no schema of this project: run scenario-pipeline db upgrade."
    )
    assert "Traceback" not in stderr
    installation.command("db", "status", status=1)


def test_a_log_that_cannot_be_written_does_not_stop_the_run_and_is_not_passed_over(installation: Installation) -> None:
    """A full disk under the log costs the log; the mentors hear all the same, and the exit status says so."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "scenario_pipeline", "run", "--date", "2026-08-01", "--dispatch-mode", "live"],
            env=installation.environment,
            cwd=PROJECT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "2 entries could not be written to stdout: the log is incomplete, the ledger is not."
    )
    assert len(world.sent(installation.engine)) == 18
    installation.check()


def test_a_database_out_of_reach_still_gives_a_closed_log(installation: Installation) -> None:
    """With both databases down there is nothing but stdout to tell it."""
    installation.run_url = installation.dagster_url = "postgresql://user:a-secret@127.0.0.1:1/nowhere"
    stdout, stderr = installation.command("run", status=1)
    stranger_accepts(stdout)
    assert [json.loads(line)["event"] for line in stdout.splitlines()] == [
        "scheduler_run_started",
        "scheduler_run_failed",
        "scheduler_run_completed",
    ]
    assert "a-secret" not in stdout + stderr
    assert "Traceback" not in stderr


def test_the_first_command_of_a_newcomer_works_on_nothing(tmp_path: Path) -> None:
    """No server, no variable, no data: `run --demo` brings all three, and a second run sends nothing twice."""
    home = tmp_path / "home"
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scenario_pipeline", *arguments],
            env=environment | {"SCENARIO_HOME": str(home)},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
            timeout=180,
        )

    try:
        first, second = command("run", "--demo"), command("run", "--demo")
        stranger_accepts(first.stdout + second.stdout)
        opening, closing = (json.loads(line) for line in (first.stdout.splitlines()[0], first.stdout.splitlines()[-1]))
        assert opening["dispatch_mode"] == "live"
        assert set(closing["dispatched_by_scenario"]) == {"certification_expiry", "inactivity", "milestone"}
        assert json.loads(second.stdout.splitlines()[-1])["total_dispatched"] == 0
        assert json.loads(command("db", "status").stdout)["fits"] is True
        assert command("db", "url").stdout.startswith("postgresql://scenario:")
    finally:
        command("db", "stop")
    assert not EmbeddedPostgres(home / "postgres").is_running()


NOBODY = str(uuid.UUID(int=7, version=4))


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["run", "--date", "2026-02-30"], {}, "--date must be a date that exists"),
        (["run", "--date", "20260801"], {}, "--date must be a date that exists"),
        (["run", "--scenario", "birthday"], {}, "There is no scenario 'birthday': the installed ones are"),
        (["run", "--organisation", "x"], {}, "--organisation must be the id of an organisation"),
        (["run", "--dispatch-mode", "maybe"], {}, "Invalid value for '--dispatch-mode'"),
        (["run", "--engine", "steam"], {}, "Invalid value for '--engine'"),
        (["run", "--time-budget", "-1"], {}, "--time-budget must be a number of seconds"),
        (["run", "--time-budget", "nan"], {}, "--time-budget must be a number of seconds"),
        (["run", "--page-size", "0"], {}, "--page-size must be a whole number of mentors"),
        (["run"], {"SCENARIO_PAGE_SIZE": "0"}, "SCENARIO_PAGE_SIZE must be"),
        (["run"], {"SCENARIO_TIME_BUDGET_SECONDS": "soon"}, "SCENARIO_TIME_BUDGET_SECONDS must be"),
        (["run"], {"SCENARIO_TIMEZONE": "Mars/Olympus"}, "SCENARIO_TIMEZONE must be"),
        (["run"], {"SCENARIO_DATABASE_URL": "mysql://user:a-secret@host/x"}, "SCENARIO_DATABASE_URL must begin with"),
        (["nonsense"], {}, "No such command"),
        (["run", "--page-size", "1_000"], {}, "--page-size must be a whole number of mentors"),
        (["run", "--page-size", "\u0663"], {}, "--page-size must be a whole number of mentors"),
        (["run", "--engine", "http"], {}, "SCENARIO_ENGINE_URL must be the base URL"),
        (["engine"], {}, "The engine needs SCENARIO_ENGINE_TOKEN"),
        (["engine", "--allow-anonymous", "--host", "0.0.0.0"], {}, "The engine needs SCENARIO_ENGINE_TOKEN"),
        (["engine", "--port", "65536"], {}, "Invalid value for '--port'"),
        (["run"], {"SCENARIO_DATABASE_URL": "postgresql://u:x@y:a-secret/z"}, "SCENARIO_DATABASE_URL has no valid"),
        (["run"], {"SCENARIO_DATABASE_URL": "postgresql://u:p@[::1/z"}, "SCENARIO_DATABASE_URL has no valid"),
        (["import", ""], {}, "DIR must be the folder"),
        (["demo", "--mentors", "0"], {}, "mentors"),
        (["import", "/no/such/folder"], {}, "folder"),
        (["events", "validate", "/no/such/file"], {}, "No such file"),
    ],
)
def test_a_mistake_gets_one_sentence_and_status_2(
    arguments: list[str],
    environment: dict[str, str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
) -> None:
    """What is wrong, where, and what to do; nothing was begun, and no secret is repeated."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", database_url)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert "a-secret" not in result.stderr


def test_a_password_with_signs_and_options_in_the_url_reach_both_databases(
    installation: Installation, server: EmbeddedPostgres
) -> None:
    """What libpq accepts as a URL works for the scheduler and for Dagster alike, and the run is recorded."""
    role, password = f"role_{uuid.uuid4().hex}", "a+b c%d@/:#?"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{password}'")
        try:
            for name in ("run_url", "dagster_url"):
                address = getattr(installation, name).split("@")[1]
                credentials = f"{role}:{quote(password, safe='')}"
                options = "?options=-c%20work_mem%3D5MB&connect_timeout=9"
                setattr(installation, name, f"postgresql://{credentials}@{address}{options}")
            _, stderr = installation.command("run", "--date", "2026-08-01")
            assert "web UI" not in stderr
        finally:
            connection.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_runs_that_never_have_time_get_through_everybody_all_the_same(installation: Installation) -> None:
    """A budget below what Dagster itself takes must not leave the same mentors out for ever."""
    evaluated = 0
    for _ in range(4):
        completed = installation.run("2026-08-01", "--page-size", "400", "--time-budget", "0.001", status=3)
        evaluated += completed["total_evaluated"]
        assert completed["pages_processed"] == 1
    assert evaluated >= 1298
    assert len(world.sent(installation.engine)) == 18
    installation.check()


def test_a_terminal_that_is_gone_does_not_decide_how_a_run_ends(installation: Installation) -> None:
    """stderr is for people; a cron job may have none."""
    with Path("/dev/full").open("wb") as full:
        for stderr in (full, None):
            command = [sys.executable, "-m", "scenario_pipeline", "run", "--date", "2026-08-01"]
            if stderr is None:
                command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
            done = subprocess.run(
                command,
                env=installation.environment,
                cwd=PROJECT,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0
            stranger_accepts(done.stdout)


def test_a_database_of_a_newer_release_is_refused_with_the_right_advice(installation: Installation) -> None:
    """`db upgrade` cannot mend it, so nobody may be sent there."""
    with installation.engine.begin() as connection:
        connection.execute(text("UPDATE scenario.alembic_version SET version_num = '9999'"))
    for command in (["run"], ["db", "status"], ["db", "upgrade"]):
        _, stderr = installation.command(*command, status=1)
        assert "newer than this code: install the release that belongs to it" in stderr
        assert "run scenario-pipeline" not in stderr


@pytest.mark.parametrize("command", [["db", "upgrade"], ["import", str(COMMUNITY)]])
def test_what_the_scheduler_may_not_do_says_who_may(installation: Installation, command: list[str]) -> None:
    """The scheduler's URL is the one that is set; whoever upgrades needs another."""
    with installation.engine.begin() as connection:
        connection.execute(text("DELETE FROM scenario.scenario_evaluation_config"))
    _, stderr = installation.command(*command, status=1)
    [sentence] = stderr.splitlines()
    assert "SQLSTATE 42501" in sentence
    assert sentence.endswith("; connect as the owner of the schema (scenario_owner) or see scenario-pipeline doctor.")


def test_demonstration_data_is_not_mixed_with_real_mentors(installation: Installation) -> None:
    """The next run would tell a real organisation about people who do not exist."""
    _, stderr = installation.command("demo", status=1)
    assert stderr == "Error: Demonstration data is loaded only where there are no mentors yet.\n"


def test_a_port_in_use_ends_up_with_a_sentence(installation: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        _, stderr = installation.command("up", "--port", str(taken.getsockname()[1]), status=1)
    assert stderr.startswith("Error: The web server cannot listen at 127.0.0.1")


def test_an_organisation_that_does_not_exist_fails_the_run(installation: Installation) -> None:
    """A mistyped id must not be a successful run over nobody."""
    completed = installation.run("2026-08-01", "--organisation", NOBODY, status=1)
    assert completed["completed"] is False


def test_a_run_of_one_scenario_and_organisation_evaluates_only_those(installation: Installation) -> None:
    """The seed's contingency: scenarios and organisations can be run apart."""
    organisation = next(line.split(",")[0] for line in (COMMUNITY / "organisations.csv").read_text().splitlines()[1:])
    completed = installation.run("2026-08-01", "--scenario", "inactivity", "--organisation", organisation)
    with installation.engine.connect() as connection:
        rows = connection.execute(
            text("""SELECT count(*) FROM scenario.peer_mentors WHERE status = 'active' AND joined_on <= '2026-08-01'
                    AND organisation_id = :organisation"""),
            {"organisation": organisation},
        )
        assert completed["total_active_mentors"] == rows.scalar_one() > 0
    assert set(completed["dispatched_by_scenario"]) == {"inactivity"}
    assert {row[1] for row in world.sent(installation.engine)} == {"inactivity"}


@pytest.mark.parametrize(
    "arguments",
    [[], ["run"], ["up"], ["demo"], ["import"], ["db"], ["db", "upgrade"], ["db", "status"], ["events", "schema"]],
)
def test_every_command_has_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, [*arguments, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")


def test_the_published_schema_and_the_validator_are_at_hand(installation: Installation, tmp_path: Path) -> None:
    """Whoever reads the log elsewhere can check it with the tool that wrote it."""
    schema = CliRunner().invoke(main, ["events", "schema"])
    assert json.loads(schema.stdout)["title"] == "Scenario pipeline event"
    stdout, _ = installation.command("run", "--date", "2026-08-01")
    log = tmp_path / "run.ndjson"
    log.write_text(stdout)
    assert CliRunner().invoke(main, ["events", "validate", str(log)]).exit_code == 0
    log.write_text(stdout.splitlines()[0])
    broken = CliRunner().invoke(main, ["events", "validate", str(log)])
    assert (broken.exit_code, broken.stdout) == (
        1,
        "line 1: the invocation is never closed by scheduler_run_completed\n",
    )
