"""The command line's process is frozen for a while, and taken for dead."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from scenario_pipeline_tests.faults.installation import FaultyInstallation
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.waiting import blocked_backends, wait_until

pytestmark = pytest.mark.faults


def test_a_frozen_process_commits_nothing_once_its_invocation_is_closed(
    installation: FaultyInstallation, tmp_path: Path
) -> None:
    """A laptop sleeps, a container is paused: what wakes up must not send under a log that is closed."""
    log = tmp_path / "events.ndjson"
    with log.open("wb") as file, installation.held(stdout=file) as run:
        run.process.send_signal(signal.SIGSTOP)
        # Nobody answers the server any more, and it gives up.
        installation.end_backends()
        wait_until(lambda: not installation.backends_of_runs(), "the server gives up")
        closing = installation.close_as_sensors_do(log.read_bytes())
        before = sent(installation.engine)
        run.go_on()
        run.process.send_signal(signal.SIGCONT)
        evidence = run.end()
    assert sent(installation.engine) == before
    assert evidence.exit_status == 1
    entries = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [e["event"] for e in entries if e["component"] == "scenario-scheduler"] == ["scheduler_run_started"]
    installation.judge(replace(evidence, log=log.read_bytes() + closing))


def test_a_page_in_its_transaction_keeps_its_invocation_open(installation: FaultyInstallation, tmp_path: Path) -> None:
    """What would be counted now would be wrong as soon as the page is committed: closing is tried again later."""
    log = tmp_path / "events.ndjson"
    with log.open("wb") as file, installation.held(stdout=file) as run:
        run.process.send_signal(signal.SIGSTOP)
        run.go_on()
        wait_until(lambda: not blocked_backends(installation.engine), "the page waits for its client only")
        with pytest.raises(OperationalError):
            installation.close_as_sensors_do(log.read_bytes())
        run.process.send_signal(signal.SIGCONT)
        evidence = run.end()
    installation.judge(replace(evidence, log=log.read_bytes()))
