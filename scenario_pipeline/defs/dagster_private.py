"""The names of Dagster's private modules that this project uses, as they were read in Dagster 1.13.27.

Belongs here: each such import, with the reason why no public name serves. Does not belong here: what is done with them.
A test looks for each of them, so that an upgrade which moves one fails with a sentence.
"""

# A config type that refuses a value of the right type raises this; `Shape` itself checks types and no bounds.
from dagster._config.errors import PostProcessingError

# What `dagster job execute` is made of: the public `execute_job` neither reports progress nor links the run to the code
# location that the web UI shows.
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.execution.api import execute_run_iterator
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin

# The types of a compute log manager: the base class is public, its arguments are not.
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager

# Compares the version of Dagster's tables with its code, without making any.
from dagster._core.storage.sql import check_alembic_revision
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

# The argument of every class that `dagster.yaml` names.
from dagster._serdes import ConfigurableClassData

# `ScheduleDefinition` checks a cron expression too, and raises with a stack trace. No public name says when a schedule
# ticked last without asking the daemon's records, which a daemon that stands still does not write.
from dagster._utils.schedules import get_latest_completed_cron_tick, is_valid_cron_string

__all__ = [
    "IO_TYPE_EXTENSION",
    "SINGLETON_REPOSITORY_NAME",
    "CapturedLogContext",
    "ComputeIOType",
    "ConfigurableClassData",
    "LoadableTargetOrigin",
    "LocalComputeLogManager",
    "ManagedGrpcPythonEnvCodeLocationOrigin",
    "PostProcessingError",
    "ReconstructableJob",
    "ReconstructableRepository",
    "RemoteRepositoryOrigin",
    "check_alembic_revision",
    "execute_run_iterator",
    "get_latest_completed_cron_tick",
    "is_valid_cron_string",
]
