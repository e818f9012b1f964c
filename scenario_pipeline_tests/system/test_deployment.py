"""The guides' services: the units, the proxy and the clock, as they stand on the pages.

Also here, because they need services: canaries in what a web server and a daemon show, print and keep.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.roles import OWNER, SCHEDULER
from scenario_pipeline_tests.support.canaries import (
    Canary,
    Found,
    files_below,
    leaks,
    process_titles,
    sessions_of,
    tables_of,
)
from scenario_pipeline_tests.support.deployment import (
    PASSWORD,
    PASSWORD_CORE,
    Deployment,
    blocks,
    deploy,
    execute,
    page,
    sql,
)
from scenario_pipeline_tests.support.people import mentor_id, organisation_id
from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.system.conftest import Api, Up, free_port, wait_until

pytestmark = pytest.mark.system

USER, LOGIN = "alice", "the-password-of-alice"


# The units


def units() -> dict[str, str]:
    """Return the guide's units by name."""
    shown = blocks("how-to/install#Services", "ini")
    found = {re.findall(r"^# /etc/systemd/system/(.+)$", block, flags=re.M)[0]: block for block in shown}
    assert set(found) == {"scenario-web.service", "scenario-daemon.service"}
    return found


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """A misspelt setting is ignored by systemd, and noticed when it is needed."""
    verify = shutil.which("systemd-analyze")
    assert verify, "systemd-analyze is missing: this test needs Debian's systemd"
    here = Deployment("0", tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "scheduler.env").touch()
    paths = []
    for name, block in units().items():
        paths.append(tmp_path / name)
        paths[-1].write_text(here.here(block))
    done = subprocess.run([verify, "verify", *map(str, paths)], capture_output=True, text=True, check=False)
    # systemd looks at its own units as well, and complains of those that this machine lacks.
    told = [line for line in done.stderr.splitlines() if "scenario-" in line]
    assert told == [], done.stderr
    wrong = tmp_path / "scenario-wrong.service"
    wrong.write_text(paths[0].read_text().replace("WorkingDirectory", "WorkFolder"))
    done = subprocess.run([verify, "verify", str(wrong)], capture_output=True, text=True, check=False)
    assert "WorkFolder" in done.stderr


class Services:
    """What systemd would start of the page's units, over a deployment."""

    def __init__(self, deployment: Deployment, server: EmbeddedPostgres) -> None:
        self.deployment, self.server = deployment, server
        self.port = free_port()
        self.api = Api(f"http://127.0.0.1:{self.port}")
        self.log = deployment.folder / "log" / "daemon.log"
        self.journal = deployment.folder / "log" / "journal"
        self._processes = [self._start(block) for block in units().values()]

    def _start(self, block: str) -> subprocess.Popen[bytes]:
        block = self.deployment.here(block).replace("-p 3000", f"-p {self.port}")
        setting = dict(re.findall(r"^(\w+)=(.*)$", block, flags=re.M))
        assert setting["EnvironmentFile"] == str(self.deployment.folder / "etc" / "scheduler.env")
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
        environment |= self.deployment.variables()
        environment |= dict([setting["Environment"].split("=", 1)])
        folder = setting["WorkingDirectory"]
        subprocess.run(shlex.split(setting["ExecStartPre"]), check=True, env=environment, cwd=folder)
        output = Path(setting.get("StandardOutput", f"append:{self.journal}").removeprefix("append:"))
        with output.open("ab") as stdout, self.journal.open("ab") as stderr:
            return subprocess.Popen(
                shlex.split(setting["ExecStart"]),
                env=environment,
                cwd=folder,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def stop(self) -> list[int]:
        """Tell all processes to end, as systemd does; return what the services ended with."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            return [process.wait(60) for process in self._processes]
        finally:
            for process in self._processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def answer(self) -> bool:
        """Whether the web server answers, and its database answers it."""
        return b'"results"' in asked(self.api, "{ runsOrError { ... on Runs { results { runId } } } }")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The page followed to its end: a server, roles by psql, an upgrade, and both units."""
    folder = tmp_path_factory.mktemp("services")
    server = EmbeddedPostgres(folder / "postgres")
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        deployment = deploy(server, folder / "machine", "administrator", "SUPERUSER")
        [by_psql] = [block for block in blocks("how-to/install#Roles", "sh") if block.startswith("psql ")]
        deployment.shell(by_psql.replace("psql", "/usr/bin/psql", 1))
        [upgrading] = re.findall(r"^\(.*db upgrade\)$", page("how-to/install"), flags=re.M)
        deployment.shell(upgrading)
        with psycopg.connect(server.url("scenario"), autocommit=True) as connection:
            connection.execute(f"INSERT INTO scenario.organisations VALUES ('{organisation_id()}', 'One', 'UTC')")
            connection.execute(
                "INSERT INTO scenario.peer_mentors (id, organisation_id, status, full_name, joined_on) "
                f"VALUES ('{mentor_id(1)}', '{organisation_id()}', 'active', 'Kari', current_date - 30)"
            )
        services = Services(deployment, server)
        try:
            wait_until(services.answer, "the web server answers", 120)
            yield services
        finally:
            services.stop()


def test_the_units_serve_the_clocks_requests_and_write_events_where_the_page_says(services: Services) -> None:
    """An administrator pastes all of it, and nothing of it may be missing a step."""
    deployment = services.deployment
    execute(deployment.url("administrator"), f"CREATE ROLE scenario_clock LOGIN PASSWORD '{PASSWORD}'")
    [granting] = sql("how-to/pg-cron", OWNER)
    execute(deployment.url(OWNER), granting)
    [switching] = blocks("how-to/pg-cron", "sh")
    deployment.shell(switching)
    [(request,)] = execute(deployment.url("scenario_clock"), "SELECT scenario.request_scheduler_run()::text")
    noted = f"SELECT invocation_id::text FROM scenario.scheduler_run_requests WHERE id = '{request}'"
    wait_until(lambda: execute(deployment.url(OWNER), noted)[0][0], "the request's run is noted", 120)
    [(run_id,)] = execute(deployment.url(OWNER), noted)
    services.api.wait_for(run_id, "SUCCESS")
    [validating] = blocks("how-to/logs", "sh")
    assert deployment.shell(validating)[1].endswith(", 0 violations.\n")
    lines = services.log.read_text(encoding="utf-8").splitlines()
    events = [json.loads(line)["event"] for line in lines if f'"invocation_id":"{run_id}"' in line]
    assert events == ["scheduler_run_started", "scheduler_run_completed"]
    assert any("dagster.daemon" in line for line in lines)
    copied = deployment.folder / "home" / "dagster" / "dagster.yaml"
    assert copied.read_text() == (PROJECT / "dagster.yaml").read_text()
    found = deployment.command("doctor", "||", "true")[0]
    assert "its daemon is running" in found
    assert "Dagster's web server listens on loopback only" in found


# Secrets


def asked(api: Api, query: str, **variables: Any) -> bytes:
    """Return what the API answers, whatever that is."""
    try:
        reply = httpx.post(f"{api.url}/graphql", json={"query": query, "variables": variables}, timeout=60)
    except httpx.TransportError:
        return b""
    return reply.content


_ERROR = "error { message stack className errorChain { error { message stack } } causes { message stack } }"
_LOGS = f"""query ($id: ID!) {{ logsForRun(runId: $id) {{ ... on EventConnection {{ events {{
    ... on MessageEvent {{ message }}
    ... on ExecutionStepFailureEvent {{ {_ERROR} }} ... on RunFailureEvent {{ {_ERROR} }}
    ... on EngineEvent {{ {_ERROR} }}
    ... on LogsCapturedEvent {{ fileKey externalUrl }} }} }} }} }}"""
_SHOWN = {
    "the page of the configuration": "{ instance { info id hasInfo } }",
    "runs": "{ runsOrError { ... on Runs { results { runId runConfigYaml runConfig tags { key value } "
    "executionPlan { artifactsPersisted } } } } }",
    "code locations": "{ workspaceOrError { ... on Workspace { locationEntries { name displayMetadata { key value } "
    "locationOrLoadError { ... on PythonError { message stack } } } } } }",
    "ticks": '{ instigationStatesOrError(repositoryID: "") { __typename } sensorsOrError(repositorySelector: '
    '{repositoryName: "__repository__", repositoryLocationName: "scenario_pipeline"}) { ... on Sensors { results '
    "{ name sensorState { ticks { status error { message stack } } } } } } }",
    "daemons": "{ instance { daemonHealth { allDaemonStatuses { daemonType lastHeartbeatErrors { message stack } "
    "} } } }",
}


def shown(api: Api) -> Found:
    """Return what the web UI can show of the instance, of each run and of each tick."""
    found = {name: asked(api, query) for name, query in _SHOWN.items()}
    for run_id in set(re.findall(rb'"runId": ?"([0-9a-f-]{36})"', found["runs"])):
        found[f"the log of {run_id.decode()}"] = asked(api, _LOGS, id=run_id.decode())
    return found


def launched(services: Services) -> tuple[str, str]:
    """Launch a run through the API and wait for its end; return its id and its status.

    Each thread of the web server meets a connection that was cut off once, and answers with that.
    """
    replies: list[dict[str, Any]] = []

    def is_launched() -> bool:
        replies.append(services.api.launch({"dispatch_mode": "dry_run"}))
        return "run" in replies[-1]

    wait_until(is_launched, "a run can be launched", 60)
    run_id = str(replies[-1]["run"]["runId"])
    wait_until(lambda: services.api.status(run_id) in ("SUCCESS", "FAILURE"), "the run is over", 120)
    return run_id, services.api.status(run_id)


def test_services_neither_show_nor_print_nor_keep_a_secret(services: Services) -> None:
    """Whoever may look at the web UI, at the log or at the list of processes is not meant to have the password."""
    canary = Canary("the password of the roles", PASSWORD, PASSWORD_CORE)
    with psycopg.connect(services.server.url("scenario"), autocommit=True) as administrator:
        assert launched(services)[1] == "SUCCESS"
        in_hand = {**process_titles(), **sessions_of(services.server.url("postgres"))}

        administrator.execute("REVOKE CONNECT ON DATABASE scenario FROM PUBLIC, scenario_scheduler")
        failed, status = launched(services)
        assert status == "FAILURE"
        refusal = b"the role may not connect to this database"
        wait_until(lambda: refusal in shown(services.api)["ticks"], "a sensor has failed as well", 60)
        administrator.execute("GRANT CONNECT ON DATABASE scenario TO scenario_scheduler")

        administrator.execute(f"ALTER ROLE {SCHEDULER} PASSWORD 'another'")
        # The web server keeps connections.
        administrator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [SCHEDULER])
        refused: list[bytes] = []

        def refusal_is_shown() -> bool:
            refused.append(asked(services.api, _SHOWN["runs"]))
            return b"password authentication failed" in refused[-1]

        wait_until(refusal_is_shown, "the web server is refused", 60)
        wait_until(
            lambda: "password authentication failed" in services.log.read_text(), "the daemon is refused as well", 120
        )
        administrator.execute(f"ALTER ROLE {SCHEDULER} PASSWORD '{PASSWORD}'")
        administrator.execute("SELECT 1")
    wait_until(services.answer, "the web server answers again", 60)
    # The daemon may just have loaded the code anew, in vain; it does so once a minute.
    wait_until(lambda: launched(services)[1] == "SUCCESS", "runs succeed again", 180)
    now_shown = shown(services.api)
    assert refusal in now_shown[f"the log of {failed}"]
    assert b"local_artifact_storage" in now_shown["the page of the configuration"]
    assert b"python_file" in now_shown["code locations"] or b"module" in now_shown["code locations"]
    titles = b"".join(in_hand.values())
    assert b"dagster-daemon" in titles
    assert b"dagster-webserver" in titles
    assert b"--instance-ref" in titles
    left_behind: dict[str, bytes] = {
        **in_hand,
        **now_shown,
        "answers without a database": b"".join(refused),
        "the daemon's log": services.log.read_bytes(),
        "the journal": services.journal.read_bytes(),
        **files_below(services.deployment.folder / "home"),
        **{f"scenario: {table}": rows for table, rows in tables_of(services.server.url("scenario")).items()},
        **{f"dagster: {table}": rows for table, rows in tables_of(services.server.url("dagster")).items()},
    }
    assert leaks(left_behind, [canary]) == []

    # What is planted in a run's tags is found where the web UI shows it.
    planted = Canary("a planted secret", "planted-4711-tag", "planted-4711-tag")
    with psycopg.connect(services.server.url("dagster"), autocommit=True) as connection:
        connection.execute(
            "UPDATE runs SET run_body = jsonb_set(run_body::jsonb, '{tags,planted}', to_jsonb(%s::text))::text "
            "WHERE run_id = %s",
            [planted.encoded, failed],
        )
    assert leaks(shown(services.api), [planted]) == ["a planted secret in runs"]


def test_the_services_of_up_neither_show_nor_print_nor_keep_the_password_of_their_database(up: Up) -> None:
    """The embedded server's password opens everything, and nobody has chosen it."""
    [password] = re.findall(r"//scenario:(.+)@", up.database_url)
    canary = Canary("the embedded server's password", password, password)
    run_id = str(up.launch({"dispatch_mode": "dry_run"})["run"]["runId"])
    up.wait_for(run_id, "SUCCESS")
    home = Path(up.environment["SCENARIO_HOME"])
    database_files = home / "postgres"
    left_behind: dict[str, bytes] = {
        **process_titles(),
        **sessions_of(up.database_url),
        **shown(up),
        "stdout and stderr": up.output.read_bytes(),
        **{path: content for path, content in files_below(home).items() if not path.startswith(str(database_files))},
        "the server's log": (database_files / "log").read_bytes(),
        **tables_of(up.database_url),
        **tables_of(up.database_url.replace("/scenario?", "/dagster?")),
    }
    assert run_id.encode() in left_behind["runs"]
    assert leaks(left_behind, [canary]) == []
    assert leaks({"its own file": (database_files / "password").read_bytes()}, [canary])
