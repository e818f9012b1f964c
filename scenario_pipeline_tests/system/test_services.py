"""Dagster's own commands in a fresh copy of the project, with no variable set and no database made beforehand."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.system.conftest import Api, free_port, wait_until

pytestmark = pytest.mark.system


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """The project's files as somebody else has them."""
    folder = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".git", ".venv", ".scenario", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(PROJECT, folder, ignore=ignored)
    yield folder
    command = [sys.executable, "-m", "scenario_pipeline", "db", "stop"]
    subprocess.run(command, cwd=folder, env=nothing_set(folder), check=True, capture_output=True)


def nothing_set(clone: Path) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    # The copy and not what is installed.
    return inherited | {"PYTHONPATH": str(clone)}


def test_the_definitions_are_valid(clone: Path) -> None:
    command = [sys.executable, "-m", "dagster", "definitions", "validate"]
    done = subprocess.run(command, cwd=clone, env=nothing_set(clone), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "All code locations passed validation" in done.stdout + done.stderr


@pytest.mark.parametrize("program", ["dagster", "dg"])
def test_the_services_start_and_run_the_job(clone: Path, program: str, tmp_path: Path) -> None:
    """People who know Dagster type what they always type."""
    port = free_port()
    executable = Path(sys.executable).with_name(program)
    output = tmp_path / "services.out"
    with output.open("wb") as file:
        services = subprocess.Popen(
            [str(executable), "dev", "--port", str(port)],
            cwd=clone,
            env=nothing_set(clone),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    api = Api(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: answers(api), "the web server answers", 120)
        run_id = api.launch({})["run"]["runId"]
        api.wait_for(run_id, "SUCCESS")
        services.send_signal(signal.SIGINT)
        assert services.wait(60) == 0
    finally:
        # Dagster's code server outlives its parent by half a minute.
        os.killpg(services.pid, signal.SIGKILL)
    assert '"event":"scheduler_run_completed"' in output.read_text(encoding="utf-8")


def answers(api: Api) -> bool:
    try:
        return api.graphql("{ version }") is not None
    except httpx.TransportError:
        return False
