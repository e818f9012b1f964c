"""Installations that followed the guide, and what is asked of them."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from scenario_pipeline.doctor.database import examine_database
from scenario_pipeline.doctor.findings import Finding
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import database, source
from scenario_pipeline.storage.roles import OWNER, SCHEDULER
from scenario_pipeline.storage.source import Access
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.deployment import (
    Deployment,
    execute,
    make_roles,
)
from scenario_pipeline_tests.support.invariants import Notification, notifications

ADMINISTRATOR = "administrator"
# By what the administrator may: how the scheduler reads the source.
ADMINISTRATORS = {"SUPERUSER": Access.VIEWS, "CREATEROLE CREATEDB": Access.FUNCTIONS}
# For what does not depend on it: the one who may less.
no_superuser = pytest.mark.parametrize("rights", ["CREATEROLE CREATEDB"], indirect=True)


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


def findings(deployment: Deployment) -> list[Finding]:
    """Return what `doctor` finds in the scheduler's database, as the scheduler."""
    settings = Settings.from_environment({"SCENARIO_DATABASE_URL": deployment.url(SCHEDULER)})
    return list(examine_database(settings))
