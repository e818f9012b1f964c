"""Installations that followed the guide, one server a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.deployed import ADMINISTRATOR, ADMINISTRATORS, another_database, upgraded
from scenario_pipeline_tests.support.deployment import (
    Deployment,
    deploy,
)


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


@pytest.fixture
def installation(deployed: Deployment, tmp_path: Path) -> Deployment:
    """An upgraded installation of this test's own."""
    return upgraded(another_database(deployed, tmp_path))
