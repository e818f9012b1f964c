"""Runs of the job and services of Dagster, started from the command line.

Belongs here: one invocation as a Dagster run of this process, and the web server with its daemon as child processes.
Does not belong here: parsing options or printing (`cli`).
"""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from threading import Event
from typing import Any

from dagster import DagsterExecutionInterruptedError, DagsterInstance

# What `dagster job execute` is made of: the public `execute_job` neither reports progress nor links the run to the
# code location that the web UI shows.
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.execution.api import execute_run_iterator
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from scenario_pipeline.defs.instance import dagster_file, prepare_dagster_home
from scenario_pipeline.defs.scheduler import JOB_NAME
from scenario_pipeline.settings import Settings

DEFINITIONS_MODULE = "scenario_pipeline.definitions"
# As in workspace.yaml.
LOCATION_NAME = "scenario_pipeline"
# Longer than Dagster's own grace for its services, shorter than a person's patience.
STOP_SECONDS = 20


def execute(
    instance: DagsterInstance,
    config: Mapping[str, Any],
    *,
    evaluation_date: date | None,
    on_page: Callable[[int], None],
) -> None:
    """Run the job in this process until it ends, fails or is interrupted; its events say how.

    Args:
        instance: where the run is recorded.
        config: configuration of `fetch_active_mentors`.
        evaluation_date: the partition that the run belongs to, where there is one for this date.
        on_page: called with the number of pages done, each time one is.
    """
    job = ReconstructableRepository.for_module(DEFINITIONS_MODULE, "defs").get_reconstructable_job(JOB_NAME)
    definition = job.get_definition()
    tags: dict[str, str] = dict(definition.run_tags)
    if evaluation_date is not None and definition.partitions_def is not None:
        key = evaluation_date.isoformat()
        if definition.partitions_def.has_partition_key(key):
            tags |= definition.get_tags_for_partition_key(key, selected_asset_keys=None)
    run = instance.create_run_for_job(
        definition,
        run_config={
            "ops": {"fetch_active_mentors": {"config": dict(config)}},
            # The command line says in one sentence what Dagster's console would say with a stack trace.
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        tags=tags,
        job_code_origin=job.get_python_origin(),
        remote_job_origin=_code_location().get_job_origin(JOB_NAME),
    )
    pages = 0
    with suppress(DagsterExecutionInterruptedError, KeyboardInterrupt):
        for event in execute_run_iterator(job, run, instance):
            if event.is_step_success and (event.step_key or "").startswith("evaluate_mentor"):
                pages += 1
                on_page(pages)


def _code_location() -> RemoteRepositoryOrigin:
    """Return what workspace.yaml describes, so that the web UI knows whose run this is."""
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name=DEFINITIONS_MODULE)
    return RemoteRepositoryOrigin(
        ManagedGrpcPythonEnvCodeLocationOrigin(target, LOCATION_NAME), SINGLETON_REPOSITORY_NAME
    )


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
        "-m",
        "dagster",
        "dev",
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
