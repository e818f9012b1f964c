"""Fixtures: servers of a test's own, whatever happens to them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenario_pipeline.errors import UserError
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.embedded import folder_of, processes_in


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was once started, to copy: `initdb` is the slowest part of these tests."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("template") / "postgres")
    try:
        server.start()
    finally:
        server.stop()
    return folder_of(server)


@pytest.fixture
def stopped(postgres: EmbeddedPostgres, template: Path) -> EmbeddedPostgres:
    """A server of this test's own that ran before."""
    shutil.copytree(template, folder_of(postgres))
    return postgres


@pytest.fixture
def running(stopped: EmbeddedPostgres) -> EmbeddedPostgres:
    """A started server of this test's own."""
    assert stopped.start()
    return stopped


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that was never started, and its folder; whatever runs there at the end is stopped."""
    server = EmbeddedPostgres(tmp_path / "postgres")
    try:
        yield server
    finally:
        with contextlib.suppress(UserError):
            server.stop()
        for pid in processes_in(folder_of(server)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
