"""What the command line loads before it does anything, what it completes, and what it shows on a terminal."""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from scenario_pipeline.cli import COMMANDS, main
from scenario_pipeline.cli.terminal import announce, counted, progress

PROJECT = Path(__file__).resolve().parent.parent.parent
# Each of these takes longer to import than click and the command line together.
SLOW = {
    *("alembic", "dagster", "dagster_postgres", "fastapi", "httpx", "psutil", "psycopg", "pydantic", "sqlalchemy"),
    *("starlette", "structlog", "uvicorn"),
}


def loaded_by(*arguments: str) -> set[str]:
    """Return the top-level modules that a command has loaded when it ends."""
    program = (
        "import sys\nfrom scenario_pipeline.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_version_load_no_library_that_only_work_needs(arguments: list[str]) -> None:
    """Everyone who reads the help, and each Tab of completion, would wait a second for SQLAlchemy."""
    loaded = loaded_by(*arguments)
    assert "click" in loaded
    assert loaded & SLOW == set()


def test_the_list_of_commands_loads_none_of_them() -> None:
    """The list must stay as quick as it is with eight commands when there are twenty."""
    program = "import sys\nfrom scenario_pipeline.cli import main\nmain(['--help'], standalone_mode=False)\n"
    program += "print(*(name for name in sys.modules if name.startswith('scenario_pipeline')), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["scenario_pipeline", "scenario_pipeline.cli"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_command_says_of_itself(name: str) -> None:
    """The list is written down, so that it needs no command; a second wording would drift."""
    command = main.get_command(main.make_context("scenario-pipeline", [name]), name)
    assert command is not None
    assert command.help is not None
    assert (command.name, command.help.splitlines()[0]) == (name, COMMANDS[name].summary)


@pytest.mark.parametrize(
    ("words", "incomplete", "completed"),
    [
        ([], "d", ["db", "demo", "doctor"]),
        (["db"], "", ["stop", "status", "upgrade", "url"]),
        (["run", "--scenario"], "", ["certification_expiry", "inactivity", "milestone"]),
        (["run", "--scenario", "milestone", "--scenario"], "in", ["inactivity"]),
        (["run", "--scenario"], "x", []),
        (["run", "--dispatch-mode"], "", ["auto", "live", "dry_run"]),
        (["run", "--engine"], "h", ["http"]),
    ],
)
def test_tab_completes_what_is_known(words: list[str], incomplete: str, completed: list[str]) -> None:
    """Nobody should have to remember how a scenario is spelled."""
    found = BashComplete(main, {}, "scenario-pipeline", "_SCENARIO_PIPELINE_COMPLETE").get_completions(
        words, incomplete
    )
    assert sorted(item.value for item in found) == sorted(completed)


def test_tab_is_silent_about_a_scenario_that_cannot_be_loaded(tmp_path: Path) -> None:
    """A traceback in the middle of the line that one types helps nobody; the command itself will say it."""
    (tmp_path / "noisy.py").write_text("import sys\nprint('loading')\nprint('!', file=sys.stderr)\nraise OSError\n")
    info = tmp_path / "noisy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[scenario_pipeline.scenarios]\nnoisy = noisy:SCENARIO\n")
    done = subprocess.run(
        [sys.executable, "-c", "from scenario_pipeline.cli import main; main(prog_name='scenario-pipeline')"],
        env={
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}",
            "_SCENARIO_PIPELINE_COMPLETE": "bash_complete",
            "COMP_WORDS": "scenario-pipeline run --scenario ",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@contextmanager
def on_a_terminal() -> Iterator[int]:
    """Let stderr be a terminal; yields its other end. Not a fixture: pytest sets stderr between setup and test."""
    mine, theirs = os.openpty()
    with pytest.MonkeyPatch.context() as patch, open(theirs, "w") as stderr:  # noqa: PTH123 - a descriptor
        patch.setattr(sys, "stderr", stderr)
        yield mine
    os.close(mine)


def shown_on(terminal: int) -> str:
    """Return what a terminal shows; the kernel hands it over in pieces."""
    sys.stderr.flush()
    shown, patience = b"", 5.0
    while select.select([terminal], [], [], patience)[0]:
        shown, patience = shown + os.read(terminal, 65_536), 0.2
    return shown.decode()


def test_progress_shows_phase_amount_and_total_while_stderr_is_redirected(tmp_path: Path) -> None:
    """Dagster captures a step's stderr in a file: the person at the terminal would look at nothing."""
    with on_a_terminal() as terminal, progress() as show:
        stderr = sys.stderr.fileno()
        before = os.dup(stderr)
        with (tmp_path / "captured").open("wb") as captured:
            os.dup2(captured.fileno(), stderr)
        show("Pages evaluated", 0, 2)
        show("Pages evaluated", 1, 2)
        show("Rows read", 20_000)
        os.dup2(before, stderr)
        os.close(before)
        shown = shown_on(terminal)
    assert [amount in shown for amount in ("Pages evaluated", "0/2", "1/2", "Rows read", "20000")] == [True] * 5
    assert (tmp_path / "captured").read_bytes() == b""


def test_a_phase_that_is_complete_ends_its_line() -> None:
    """An event that the same terminal shows next would be glued to the bar."""
    with on_a_terminal() as terminal, progress() as show:
        show("Pages evaluated", 1, 1)
        assert shown_on(terminal).endswith("\r\n")


def test_progress_shows_nothing_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mail of a cron job is no place for bars."""
    for stderr in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress() as show:
            show("Pages evaluated", 1, 2)
        assert stderr is None or stderr.getvalue() == ""


def test_what_takes_long_is_announced_on_a_terminal() -> None:
    """Silence of seconds looks like a program that hangs."""
    with on_a_terminal() as terminal:
        announce("Loading Dagster")
        assert shown_on(terminal) == "Loading Dagster ...\r\n"


def test_a_log_hears_of_what_happens_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lines with every hourly run would hide the one that matters."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    announce("Loading Dagster")
    announce("Creating the embedded Postgres", also_in_a_log=True)
    assert stderr.getvalue() == "Creating the embedded Postgres ...\n"


@pytest.mark.parametrize(
    ("count", "sentence"), [(0, "0 activities"), (1, "1 activity"), (2, "2 activities"), (1234, "1,234 activities")]
)
def test_one_is_singular(count: int, sentence: str) -> None:
    assert counted(count, "activity", "activities") == sentence
    assert counted(1, "mentor") == "1 mentor"
