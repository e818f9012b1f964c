"""Fixtures: one running installation as `scenario-pipeline up` starts it, its GraphQL API, and a browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from dagster import DagsterInstance
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from scenario_pipeline.defs.instance.home import load_instance
from scenario_pipeline.settings import Settings
from scenario_pipeline_tests.support import waiting
from scenario_pipeline_tests.support.project import PROJECT

JOB = {
    "repositoryLocationName": "scenario_pipeline",
    "repositoryName": "__repository__",
    "pipelineName": "scenario_scheduler",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The README's pictures are taken by the test of the web UI."""
    parser.addoption("--screenshots", metavar="DIR", help="Save the README's screenshots of the web UI in DIR.")


# Each look costs a request: the machine is to be left to what is waited for.
wait_until = partial(waiting.wait_until, every=0.3)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Api:
    """The GraphQL API of a web server, as a client other than the browser uses it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def graphql(self, query: str, **variables: Any) -> Any:
        """Return the data of one GraphQL request."""
        reply = httpx.post(f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60)
        body = reply.json()  # also of an error, which has status 500
        assert "errors" not in body, body
        return body["data"]

    def launch(self, config: dict[str, Any]) -> Any:
        """Launch the job as any API client would; return what came of it."""
        return self.graphql(
            """mutation ($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
                __typename
                ... on LaunchRunSuccess { run { runId } }
                ... on RunConfigValidationInvalid { errors { message } }
                ... on PythonError { message } } }""",
            params={
                "selector": JOB,
                "mode": "default",
                "runConfigData": json.dumps({"ops": {"fetch_active_mentors": {"config": config}}}),
            },
        )["launchPipelineExecution"]

    def status(self, run_id: str) -> str:
        """Return the status of a run."""
        query = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
        return str(self.graphql(query, id=run_id)["runOrError"]["status"])

    def wait_for(self, run_id: str, status: str, seconds: float = 120) -> None:
        """Wait until a run has the status."""
        wait_until(lambda: self.status(run_id) == status, f"run {run_id} is {status}", seconds)


class Up(Api):
    """`scenario-pipeline up` over demonstration data, in a home of its own and with nothing else set."""

    def __init__(self, home: Path, **environment: str) -> None:
        port = free_port()
        super().__init__(f"http://127.0.0.1:{port}")
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
        self.environment = inherited | {"SCENARIO_HOME": str(home)} | environment
        self.output = home.parent / "up.out"
        # Three pages of a thousand.
        self.command("demo", "--mentors", "3000")
        self.database_url = self.command("db", "url").strip()
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scenario_pipeline", "up", "--port", str(port)],
                env=self.environment,
                cwd=PROJECT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def command(self, *arguments: str) -> str:
        """Run a command of the project and return its stdout."""
        return self._run([sys.executable, "-m", "scenario_pipeline", *arguments])

    def dagster(self, *arguments: str) -> str:
        """Run a command of Dagster in the same instance and return its stdout."""
        home = Path(self.environment["SCENARIO_HOME"]) / "dagster"
        return self._run([sys.executable, "-m", "dagster", *arguments], DAGSTER_HOME=str(home))

    def _run(self, command: list[str], **environment: str) -> str:
        done = subprocess.run(
            command,
            env=self.environment | environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        """Interrupt it once, as a person would."""
        self.process.send_signal(2)
        assert self.process.wait(60) == 0

    def logged(self, run_id: str) -> list[dict[str, Any]]:
        """Return the entries of a run on the stdout of `up`, where the daemon's processes write as well."""
        lines = self.output.read_text(encoding="utf-8").split("\n")
        entries = [json.loads(line) for line in lines if line.startswith('{"timestamp"')]
        return [entry for entry in entries if entry["invocation_id"] == run_id]

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection to the scheduler's own database."""
        return psycopg.connect(self.database_url, autocommit=True)


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The installation that the tests of this folder share; its schedule is left to its first full hour."""
    up = Up(tmp_path_factory.mktemp("up") / "home")
    try:
        wait_until(lambda: "Dagster is served" in up.output.read_text(), "the web server answers", 120)
        yield up
    finally:
        up.stop()


@pytest.fixture
def instance(up: Up, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """The instance of the installation."""
    for name, value in up.environment.items():
        monkeypatch.setenv(name, value)
    with load_instance(Settings.from_environment()) as instance:
        yield instance


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium without a screen."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary, "chromium is missing: these tests need it and chromedriver (Debian: chromium, chromium-driver)"
    assert driver, "chromedriver is missing (Debian: chromium-driver)"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for argument in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "disable-dev-shm-usage",
            "no-first-run",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            "window-size=1500,1250",
            f"user-data-dir={profile}",
        ):
            options.add_argument(f"--{argument}")
        driven = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield driven
        finally:
            driven.quit()


@pytest.fixture
def screenshot(browser: webdriver.Chrome, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Saves what the browser shows, if the pictures were asked for."""
    folder = request.config.getoption("--screenshots")

    def save(name: str) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            browser.save_screenshot(str(Path(folder) / f"{name}.png"))

    return save


@pytest.fixture
def debian_url() -> Iterator[str]:
    """A server with pg_cron loaded, in a folder of its own; as root it runs as the user of Debian's package."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/lib/pg_cron.so"))
    assert found, "pg_cron is missing: this test needs Debian's postgresql-15-cron"
    binaries = found[-1].parent.parent / "bin"
    # Not below pytest's own folder, which it closes to other users whenever it starts.
    folder = Path(tempfile.mkdtemp())
    prefix: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        prefix = ["runuser", "-u", "postgres", "--"]
    options = (
        f"-c unix_socket_directories={folder} -c listen_addresses='' -c shared_preload_libraries=pg_cron "
        "-c cron.database_name=scenario -c cron.use_background_workers=on"
    )

    def server(program: str, *arguments: str) -> None:
        # Inherited pipes would stay open for as long as the server runs.
        subprocess.run(
            [*prefix, str(binaries / program), "-D", str(folder / "data"), *arguments],
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
        )

    server("initdb", "-A", "trust", "-U", "postgres")
    server("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        with psycopg.connect(host=str(folder), user="postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE scenario")
        yield f"postgresql://postgres@/scenario?host={folder}"
    finally:
        server("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)
