"""Fixtures: the small world, in a database of each test's own or on a server that a test may ruin."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.faults import small_world
from scenario_pipeline_tests.faults.installation import FaultyInstallation
from scenario_pipeline_tests.support.server import copy_database, let_schedulers_in, own_database


@pytest.fixture(scope="session")
def small_template(server: EmbeddedPostgres, template_database: str) -> str:
    """The name of a database with the small world in it, to copy."""
    name = "template_small_world"
    copy_database(server, name, template_database)
    engine = database.connect(server.url(name))
    small_world.insert(engine)
    engine.dispose()
    return name


@pytest.fixture
def small_url(server: EmbeddedPostgres, small_template: str) -> Iterator[str]:
    """The URL of a database of this test's own with the small world in it."""
    yield from own_database(server, small_template)


@pytest.fixture
def installation(small_url: str, dagster_url: str, tmp_path: Path) -> Iterator[FaultyInstallation]:
    """An installation over the small world."""
    installation = FaultyInstallation(small_url, dagster_url, tmp_path / "home")
    yield installation
    installation.engine.dispose()


@pytest.fixture
def own_home(tmp_path: Path) -> Path:
    """Where a server of the test's own and Dagster's files are."""
    return tmp_path / "home"


@pytest.fixture
def own_server(own_home: Path) -> Iterator[EmbeddedPostgres]:
    """A server that a test may ruin, with the small world on it, where an installation without a URL has it."""
    server = EmbeddedPostgres(own_home / "postgres")
    server.start()
    try:
        for name in ("scenario", "dagster"):
            database.create_database(server.url("postgres"), name)
        engine = database.connect(server.url("scenario"))
        upgrade(engine)
        let_schedulers_in(engine)
        small_world.insert(engine)
        engine.dispose()
        yield server
    finally:
        server.start()
        server.stop()


@pytest.fixture
def own_installation(own_server: EmbeddedPostgres, own_home: Path) -> Iterator[FaultyInstallation]:
    """An installation that uses its embedded server, as one without a variable set does."""
    installation = FaultyInstallation(own_server.url("scenario"), own_server.url("dagster"), own_home)
    # An empty variable counts as unset.
    installation.variables |= {"SCENARIO_DATABASE_URL": "", "SCENARIO_DAGSTER_DATABASE_URL": ""}
    yield installation
    installation.engine.dispose()


SMALL_DISK_MEGABYTES = 200
# Set for the process that runs a test in a namespace of its own.
SMALL_DISK = "FAULTS_SMALL_DISK"
_MOUNT = f"mount -t tmpfs -o size={SMALL_DISK_MEGABYTES}m,mode=777 tmpfs"


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system that is soon full; where we are not root, the one in a namespace that the hook below makes."""
    # Not below pytest's own folder, which it closes to the user that a server of root's runs as.
    folder = Path(os.environ.get(SMALL_DISK) or tempfile.mkdtemp())
    if os.geteuid() == 0:
        subprocess.run([*_MOUNT.split(), str(folder)], check=True)
    yield folder
    if os.geteuid() == 0:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    if SMALL_DISK not in os.environ:
        shutil.rmtree(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that needs a small disk in a namespace where an ordinary user may mount one.

    There we are root by name only, and Postgres refuses to run as root: a second namespace gives our own name back.
    """
    folder = pyfuncitem.funcargs.get("small_disk")
    if folder is None or os.geteuid() == 0 or SMALL_DISK in os.environ:
        return None
    own_name = f"--map-user={os.getuid()} --map-group={os.getgid()}"
    script = f'{_MOUNT} "$0" && exec unshare --user {own_name} "$@"'
    pytest_again = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "faults", pyfuncitem.nodeid)
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(folder), *pytest_again],
        cwd=pyfuncitem.config.rootpath,
        env=os.environ | {SMALL_DISK: str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        "Neither root nor a user who may use namespaces (`unshare --map-root-user --mount`): a small disk cannot be "
        f"mounted, or the test failed on it.\n{done.stdout}\n{done.stderr}"
    )
    return True
