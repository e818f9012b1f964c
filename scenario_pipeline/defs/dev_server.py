"""Dagster's web server and daemon as child processes (`scenario-pipeline up`).

Belongs here: starting and stopping them. Does not belong here: options or printing (`cli`).
"""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from threading import Event

from scenario_pipeline.defs.instance.home import dagster_file, prepare_dagster_home
from scenario_pipeline.settings import Settings

# Longer than Dagster's own grace for its services, shorter than a person's patience.
STOP_SECONDS = 20


def serve(settings: Settings, host: str, port: int, *, on_ready: Callable[[str], None]) -> int:
    """Run Dagster's web server and daemon until one of them ends or the process is interrupted.

    Args:
        settings: whose instance is served.
        host: address to bind; Dagster has no login of its own.
        port: TCP port.
        on_ready: called once with the URL, as soon as it answers.

    Returns:
        0 after an interrupt, else 1.
    """
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
    services = subprocess.Popen(command, cwd=home, env=os.environ | {"DAGSTER_HOME": str(home)}, start_new_session=True)
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        url, announced = f"http://{host}:{port}", False
        while not stop.wait(0.5) and services.poll() is None:
            if not announced and _answers(url):
                on_ready(url)
                announced = True
        return 0 if stop.is_set() else 1
    finally:
        _stop(services)


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
