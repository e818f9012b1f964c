"""A small disk fills up under a run: that of the tables, that of the write-ahead log, that of the event log."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.faults.endings import FAILED, LEFT, ending, lost
from scenario_pipeline_tests.faults.installation import FaultyInstallation

pytestmark = pytest.mark.faults


@pytest.fixture
def own_home(small_disk: Path) -> Path:
    """Everything of the embedded installation is on the small disk: the server, and what Dagster captures."""
    return small_disk / "home"


def fill(disk: Path) -> Path:
    """Leave no room on a disk; return the file that has taken it."""
    filler = disk / "filler"
    for size in (1 << 20, 1 << 12):
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(size)) == size:
                pass
    return filler


def test_tables_that_cannot_grow_fail_the_run_and_the_next_one_does_the_rest(
    small_disk: Path, own_installation: FaultyInstallation
) -> None:
    """Dagster's tables and the captured log are on the same disk: stdout and the ledger still say what happened."""
    # So that the second page needs room that the first one has not taken.
    own_installation.as_owner("ALTER TABLE scenario.scenario_notifications SET (fillfactor = 10)")
    with own_installation.held() as run:
        filler = fill(small_disk)
        run.go_on()
        evidence = run.end()
    assert ending(evidence) == (FAILED, "database_error", LEFT)
    filler.unlink()
    own_installation.judge(evidence)


def test_a_write_ahead_log_that_cannot_grow_stops_the_server_and_the_next_run_does_the_rest(
    small_disk: Path, own_server: EmbeddedPostgres, own_installation: FaultyInstallation
) -> None:
    """Postgres would rather stop than lose a commit, and starts again when there is room."""
    with own_installation.held() as run:
        filler = fill(small_disk)
        own_installation.as_owner("SELECT pg_switch_wal()")
        run.go_on()
        evidence = run.end(ledger_lost=True)
    event, error_type, _ = ending(evidence)
    # The run waits for the server, which may come up for a moment and refuse what is tried once more.
    assert event == FAILED, evidence.log
    assert error_type in ("network_error", "database_error"), evidence.log
    filler.unlink()
    own_server.start()
    own_installation.move_to(own_server.url("scenario"))
    own_installation.judge(evidence)


def test_a_line_torn_by_a_full_disk_does_not_tear_those_after_it(
    small_disk: Path, installation: FaultyInstallation
) -> None:
    """The disk of the log is full for a moment: what is written later stands on lines of its own."""
    log = small_disk / "events.ndjson"
    earlier = b"x" * 3999 + b"\n"
    log.write_bytes(earlier)
    # A block is 4096 bytes: the first entry gets 96 of them.
    filler = fill(small_disk)
    with log.open("ab") as file, installation.held(stdout=file) as run:
        filler.unlink()
        run.go_on()
        evidence = run.end(log_lost=True)
    captured = installation.captured_log()
    first, *others = captured.splitlines(keepends=True)
    assert log.read_bytes() == earlier + first[:96] + b"\n" + b"".join(others)
    assert run.stderr.splitlines()[-1] == lost(1)
    installation.judge(replace(evidence, log=captured))


def test_a_home_without_room_costs_what_dagster_captures_alone(
    small_disk: Path, small_url: str, dagster_url: str
) -> None:
    """The databases are elsewhere: everybody is evaluated, and a sentence names each file that was not written."""
    installation = FaultyInstallation(small_url, dagster_url, small_disk / "home")
    with installation.running() as run:
        run.end()
    filler = fill(small_disk)
    with installation.running() as run:
        evidence = run.end()
    assert evidence.exit_status == 0, run.stderr
    [captured] = [line for line in run.stderr.splitlines() if ".out could not be written: " in line]
    assert captured.startswith(str(installation.home))
    assert "to stdout" not in run.stderr
    filler.unlink()
    installation.judge(evidence)
    installation.engine.dispose()
