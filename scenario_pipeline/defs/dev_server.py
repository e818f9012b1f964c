"""Dagster's web server and daemon as child processes (`scenario-pipeline up`).

Belongs here: starting and stopping them, and noticing that the code server is lost. Does not belong here: options or
printing (`cli`).
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import Any

from scenario_pipeline.defs.instance.home import dagster_file, prepare_dagster_home
from scenario_pipeline.settings import Settings

# Longer than Dagster's own grace for its services, shorter than a person's patience.
STOP_SECONDS = 20
# How often the web server is asked for the code server, and how long that one may take to come back.
LOOK_SECONDS = 5.0
RETURN_SECONDS = 90.0
# A start takes seconds on a busy machine, and another one asked for meanwhile would begin anew.
START_SECONDS = 30.0


def serve(
    settings: Settings, host: str, port: int, *, on_ready: Callable[[str], None], on_trouble: Callable[[str], None]
) -> int:
    """Run Dagster's web server and daemon until one of them ends or the process is interrupted.

    Dagster starts its code server anew where the outer one of its two processes ends. Where the inner one does, no
    schedule ticks and no sensor either, without an end: then it is started here.

    Args:
        settings: whose instance is served.
        host: address to bind; Dagster has no login of its own.
        port: TCP port.
        on_ready: called once with the URL, as soon as it answers.
        on_trouble: called with a sentence when the code server is lost.

    Returns:
        0 after an interrupt, else 1.
    """
    services = _started(settings, host, port)
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        url, announced = f"http://{host}:{port}", False
        code_server = CodeServer(url, on_trouble)
        while not stop.wait(0.5) and services.poll() is None:
            if not announced and _answers(url):
                on_ready(url)
                announced = True
            if announced and not code_server.is_kept_alive():
                break
        return 0 if stop.is_set() else 1
    finally:
        _stop(services)


def _started(settings: Settings, host: str, port: int) -> subprocess.Popen[bytes]:
    home = prepare_dagster_home(settings)
    command = [
        sys.executable,
        # It would say that `dg dev` is the newer name, which a plain installation does not have.
        "-W",
        "ignore:Function `dev_command` is superseded",
        "-m",
        "dagster",
        "dev",
        # At `info` each sensor writes two lines with every tick, which the web UI shows as well.
        "--log-level",
        "warning",
        # The other formats colour what they write wherever it goes.
        "--log-format",
        "colored" if sys.stdout is not None and sys.stdout.isatty() else "json",
        "-h",
        host,
        "-p",
        str(port),
        "-w",
        str(dagster_file(settings, "workspace.yaml")),
    ]
    # A session of its own: an interrupt of the terminal reaches only us, and we stop the services in order.
    return subprocess.Popen(command, cwd=home, env=os.environ | {"DAGSTER_HOME": str(home)}, start_new_session=True)


class CodeServer:
    """The process that loads the definitions, as the web server at `url` sees it."""

    def __init__(self, url: str, on_trouble: Callable[[str], None]) -> None:
        self._url, self._on_trouble = url, on_trouble
        self._looked_at = time.monotonic()
        self._lost_since: float | None = None
        self._started_at = -START_SECONDS

    def is_kept_alive(self) -> bool:
        """Look, if it is time to, and have a lost server started; return False once it did not come back in time."""
        now = time.monotonic()
        if now < self._looked_at + LOOK_SECONDS:
            return True
        self._looked_at = now
        lost = self._lost_locations()
        if not lost:
            self._lost_since = None
            return True
        if self._lost_since is None:
            self._lost_since, self._started_at = now, -START_SECONDS
            self._on_trouble("Dagster's code server is gone, so nothing ticks: it is started again.")
        elif now > self._lost_since + RETURN_SECONDS:
            self._on_trouble("Dagster's code server did not come back: start scenario-pipeline up again.")
            return False
        if now < self._started_at + START_SECONDS:
            return True
        self._started_at = now
        for name in lost:
            self._ask("mutation ($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) "
                      "{ __typename } }", name=name)  # fmt: skip
        return True

    def _lost_locations(self) -> list[str]:
        """Return the locations whose process does not answer; one whose code cannot be loaded is no such."""
        found = self._ask(
            "{ workspaceOrError { ... on Workspace { locationEntries { name "
            "locationOrLoadError { ... on PythonError { className } } } } } }"
        )
        entries = found.get("workspaceOrError", {}).get("locationEntries", [])
        return [
            entry["name"]
            for entry in entries
            if (entry["locationOrLoadError"] or {}).get("className") == "DagsterUserCodeUnreachableError"
        ]

    def _ask(self, query: str, **variables: str) -> dict[str, Any]:
        """Return what the web server answers; nothing where it has no time."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310 - our own URL
            f"{self._url}/graphql", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310 - our own URL
                return json.load(reply).get("data") or {}
        except (OSError, ValueError):
            return {}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=2):  # noqa: S310 - our own URL
            return True
    except OSError:
        return False


def _stop(services: subprocess.Popen[bytes]) -> None:
    """Ask the services to stop, then make sure that nothing of their session is left."""
    with suppress(ProcessLookupError):
        services.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        services.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(services.pid, signal.SIGKILL)
    services.wait()
