"""Root, whom Postgres refuses: the server runs as another user, also where only root may enter."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from scenario_pipeline.settings import PROJECT_FOLDER
from scenario_pipeline.storage import postgres_tools
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.embedded import STARTER, as_root, execute, folder_of, linux, postmaster_of

# Says on stdout why it could not start.
EXPLAINING_STARTER = (
    "from scenario_pipeline.errors import UserError\n"
    f"try:{STARTER.replace(chr(10), chr(10) + ' ')}\n"
    "except UserError as exc: print(exc.exit_status, exc)"
)


def modes(path: Path) -> list[tuple[Path, int, int]]:
    return [(step, step.stat().st_mode, step.stat().st_uid) for step in path.parents]


@as_root
@linux
def test_root_may_keep_the_folder_where_nobody_else_can_enter(tmp_path: Path) -> None:
    """A fresh clone in root's home must work, and must not open that home to others."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "home" / "postgres")
    (closed / "home").mkdir()
    before = modes(folder_of(server))
    try:
        assert server.start()
        assert execute(server, "SELECT 1") == [(1,)]
        postmaster = postmaster_of(folder_of(server))
        assert Path(f"/proc/{postmaster}").stat().st_uid != 0
        assert modes(folder_of(server)) == before
    finally:
        assert server.stop()


@as_root
@linux
def test_root_gives_the_server_no_capability_where_none_is_needed() -> None:
    """A server that may read every file of the machine is for the closed folder only."""
    # Not below pytest's own folder, which it keeps closed.
    open_folder = Path(tempfile.mkdtemp())
    open_folder.chmod(0o755)
    server = EmbeddedPostgres(open_folder / "postgres")
    try:
        assert server.start()
        status = Path(f"/proc/{postmaster_of(folder_of(server))}/status").read_text().split("\n")
        account = server._server_account()
        assert account is not None
        granted = [line.split()[1] for line in status if line.startswith("CapEff")]
        reachable = postgres_tools.is_reachable((open_folder, postgres_tools.binaries() / "postgres"), account)
        assert (set(granted[0]) == {"0"}) is reachable
    finally:
        server.stop()
        shutil.rmtree(open_folder)


@as_root
def test_root_works_in_the_folder_of_an_ordinary_user_as_that_user(tmp_path: Path) -> None:
    """One `sudo` must not take the database away from its owner."""
    folder = tmp_path / "postgres"
    folder.mkdir(mode=0o700)
    owner = pwd.getpwnam("daemon").pw_uid
    os.chown(folder, owner, owner)
    server = EmbeddedPostgres(folder)
    try:
        server.start()
        assert {path.stat().st_uid for path in folder.rglob("*")} == {owner}
    finally:
        assert server.stop()


@as_root
@linux
def test_root_may_keep_the_binaries_where_nobody_else_can_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment in root's home: `initdb` looks for `postgres` by access(2), which drops capabilities."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    package = postgres_tools.binaries().parent.parent
    # The libraries lie beside the package, where the wheel's own tools put them.
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    inside = closed / package.name / postgres_tools.binaries().relative_to(package)
    monkeypatch.setattr(postgres_tools, "binaries", lambda: inside)
    before = modes(inside)
    server = EmbeddedPostgres(closed / "postgres")
    try:
        assert server.start()
        assert execute(server, "SELECT 1") == [(1,)]
        assert Path(f"/proc/{postmaster_of(folder_of(server))}/exe").readlink() == inside / "postgres"
        assert modes(inside) == before
    finally:
        assert server.stop()


@as_root
@linux
def test_in_a_closed_folder_the_server_has_one_capability_of_root_and_no_other(tmp_path: Path) -> None:
    """The bit that lets it in would otherwise keep everything that root may do."""
    tmp_path.chmod(0o700)
    server = EmbeddedPostgres(tmp_path / "postgres")
    try:
        assert server.start()
        status = Path(f"/proc/{postmaster_of(folder_of(server))}/status").read_text()
        fields = {name: value.strip() for name, value in (line.split(":", 1) for line in status.splitlines())}
        # Bit 1 is CAP_DAC_OVERRIDE.
        assert [fields[name] for name in ("CapPrm", "CapEff", "Groups")] == [f"{2:016x}", f"{2:016x}", ""]
    finally:
        server.stop()


@as_root
@linux
@pytest.mark.parametrize("missing", [7, 8], ids=["setuid", "setpcap"])
def test_where_root_may_not_hand_on_its_rights_it_learns_what_to_do(tmp_path: Path, missing: int) -> None:
    """Hardened containers take capabilities from root; the sentence names the ways out."""
    tmp_path.chmod(0o700)
    # 24 is PR_CAPBSET_DROP, which counts from the next exec on.
    without = f"import ctypes; ctypes.CDLL(None).prctl(24, {missing}, 0, 0, 0)\n"
    finished = subprocess.run(
        [sys.executable, "-c", without + EXPLAINING_STARTER, str(tmp_path / "postgres")],
        cwd=PROJECT_FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert finished.stderr == ""
    assert finished.stdout.startswith(f"1 The embedded database in {tmp_path / 'postgres'} or the project lies in")
    assert "ordinary user, move the project, or set SCENARIO_DATABASE_URL" in finished.stdout
