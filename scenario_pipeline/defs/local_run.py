"""One invocation as a Dagster run of this process (`scenario-pipeline run`).

Belongs here: creating and executing the run. Does not belong here: options or printing (`cli`).
"""

import sys
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from dagster import DagsterExecutionInterruptedError, DagsterInstance, DagsterRun

from scenario_pipeline.defs.dagster_private import (
    SINGLETON_REPOSITORY_NAME,
    LoadableTargetOrigin,
    ManagedGrpcPythonEnvCodeLocationOrigin,
    ReconstructableJob,
    ReconstructableRepository,
    RemoteRepositoryOrigin,
    execute_run_iterator,
)
from scenario_pipeline.defs.instance.storage import PATIENCE
from scenario_pipeline.defs.job import JOB_NAME

DEFINITIONS_MODULE = "scenario_pipeline.definitions"
# As in workspace.yaml.
LOCATION_NAME = "scenario_pipeline"


def execute(
    instance: DagsterInstance,
    config: Mapping[str, Any],
    *,
    evaluation_date: date | None,
    on_page: Callable[[int, int], None],
    on_created: Callable[[str], None] = lambda _: None,
) -> bool:
    """Run the job in this process until it ends, fails or is interrupted; its events say how.

    An entry that Dagster cannot store is lost, and the run goes on; `PATIENCE.refusal` says why.

    Args:
        instance: where the run is recorded.
        config: configuration of `fetch_active_mentors`.
        evaluation_date: the partition that the run belongs to, where there is one for this date.
        on_page: called with how many pages are done and how many there are, at the start and each time one is done.
        on_created: called with the run's id before anything is evaluated.

    Returns:
        Whether it ended by itself; False if the process was told to stop.
    """
    job = ReconstructableRepository.for_module(DEFINITIONS_MODULE, "defs").get_reconstructable_job(JOB_NAME)
    PATIENCE.enter_run()
    run = _created(instance, job, config, evaluation_date)
    on_created(run.run_id)
    done = total = 0
    try:
        for event in execute_run_iterator(job, run, instance):
            step = event.step_key or ""
            if event.is_successful_output and step == "fetch_active_mentors":
                total += event.step_output_data.output_name == "pages"
            elif event.is_step_success and step == "fetch_active_mentors":
                on_page(done, total)
            elif event.is_step_success and step.startswith("evaluate_mentor"):
                done += 1
                on_page(done, total)
    except (DagsterExecutionInterruptedError, KeyboardInterrupt):
        return False
    return True


def _created(
    instance: DagsterInstance, job: ReconstructableJob, config: Mapping[str, Any], evaluation_date: date | None
) -> DagsterRun:
    definition = job.get_definition()
    tags: dict[str, str] = dict(definition.run_tags)
    if evaluation_date is not None and definition.partitions_def is not None:
        key = evaluation_date.isoformat()
        if definition.partitions_def.has_partition_key(key):
            tags |= definition.get_tags_for_partition_key(key, selected_asset_keys=None)
    return instance.create_run_for_job(
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


def _code_location() -> RemoteRepositoryOrigin:
    """Return what workspace.yaml describes, so that the web UI knows whose run this is."""
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name=DEFINITIONS_MODULE)
    return RemoteRepositoryOrigin(
        ManagedGrpcPythonEnvCodeLocationOrigin(target, LOCATION_NAME), SINGLETON_REPOSITORY_NAME
    )
