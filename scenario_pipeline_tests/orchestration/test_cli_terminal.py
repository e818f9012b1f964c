"""What a person sees of a command: on a terminal, and in a pipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
NOBODY = "00000000-0000-4000-8000-000000000007"


@pytest.fixture
def environment(community_url: str, dagster_url: str, tmp_path: Path) -> dict[str, str]:
    """The variables of an installation with the community in it."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    return inherited | {
        "SCENARIO_DATABASE_URL": community_url,
        "SCENARIO_DAGSTER_DATABASE_URL": dagster_url,
        "SCENARIO_HOME": str(tmp_path / "home"),
    }


def in_a_pipe(environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "scenario_pipeline", *arguments],
        env=environment,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def on_a_terminal(environment: dict[str, str], *arguments: str) -> str:
    """Return what a command shows on the terminal that its stderr is, while its stdout goes elsewhere."""
    mine, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "scenario_pipeline", *arguments],
        env=environment,
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = bytearray()
        try:
            while piece := os.read(mine, 65_536):
                shown += piece
        except OSError:  # Linux' way to say that nobody has the other end any more
            pass
        os.close(mine)
    assert process.returncode == 0, shown
    return shown.decode()


def test_a_run_on_a_terminal_says_what_it_does_and_how_far_it_is(environment: dict[str, str]) -> None:
    """Six silent seconds look like a program that hangs; so does a run of minutes without a number."""
    shown = on_a_terminal(environment, "run", "--date", "2026-08-01", "--page-size", "500")
    lines = [line for line in shown.replace("\r\n", "\n").split("\n") if line]
    assert lines[:3] == ["Loading Dagster ...", "Opening Dagster's records ...", "Starting the run ..."]
    assert re.findall(r"Pages evaluated .*?(\d/\d)", shown) == ["0/3", "1/3", "2/3", "3/3"]
    assert lines[-1].startswith("2026-08-01 (dry_run): 1,298 of 1,298 active mentors evaluated in ")


def test_a_run_in_a_pipe_writes_its_summary_and_nothing_else(environment: dict[str, str]) -> None:
    """cron mails what a job writes."""
    status, stdout, stderr = in_a_pipe(environment, "run", "--date", "2026-08-01")
    assert (status, len(stdout.splitlines()), len(stderr.splitlines())) == (0, 2, 1)


def test_an_organisation_that_does_not_exist_is_wrong_usage(environment: dict[str, str]) -> None:
    """A mistyped id must not be a run over nobody, nor wake whoever watches for failed runs."""
    assert in_a_pipe(environment, "run", "--organisation", NOBODY) == (
        2,
        "",
        f"Error: There is no organisation {NOBODY}: check the ids given with --organisation.\n",
    )


def test_the_first_command_of_all_says_that_it_creates_a_database(environment: dict[str, str], tmp_path: Path) -> None:
    """It takes seconds, and happens once: the only line that a pipe gets as well."""
    del environment["SCENARIO_DATABASE_URL"]
    try:
        first, second = in_a_pipe(environment, "db", "url"), in_a_pipe(environment, "db", "url")
    finally:
        in_a_pipe(environment, "db", "stop")
    assert (first[0], first[2]) == (0, f"Creating the embedded Postgres in {tmp_path / 'home'} ...\n")
    assert (second[0], second[2]) == (0, "")
