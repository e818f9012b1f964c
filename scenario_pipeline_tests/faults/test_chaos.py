"""A server that is restarted again and again, and loses backends in between, under two processes that run all the time.

The form for minutes and hours is `benchmarks/chaos.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scenario_pipeline_tests.faults.chaos import Plan, chaos

pytestmark = pytest.mark.faults

# Tighter than the hour-long form, so that a minute holds as many restarts as it needs.
PLAN = Plan(seconds=70, dates=4, restart_every=(2.0, 6.0), end_every=(0.5, 2.0))
# The faster the machine, the fewer restarts fall into a run.
RESTARTS_AT_LEAST, BACKENDS_AT_LEAST, COMPLETED_AT_LEAST = 3, 8, 0.95


def test_runs_complete_although_the_server_is_restarted_every_few_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing lost and nothing twice is not enough: once 42 of 46 runs failed, and the mentors heard days later."""
    findings = chaos(tmp_path, PLAN)
    with capsys.disabled():
        # The output of CI shows how much there was.
        sys.stdout.write(f"\n{findings.summary()}\n")
    assert findings.complaints == []
    assert (findings.restarts_in_runs >= RESTARTS_AT_LEAST, findings.ended >= BACKENDS_AT_LEAST) == (True, True)
    assert findings.completed >= COMPLETED_AT_LEAST
