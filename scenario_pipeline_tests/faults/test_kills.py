"""The command line's process is killed or terminated at named moments."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import pytest

from scenario_pipeline_tests.faults import small_world
from scenario_pipeline_tests.faults.installation import FaultyInstallation
from scenario_pipeline_tests.support.people import mentor_id
from scenario_pipeline_tests.support.waiting import wait_until_blocked

pytestmark = pytest.mark.faults

CLOSING = "it closes its invocation"
# What the run waits for at that moment: the notification of a mentor, a lock that this statement takes, or what a
# trigger would be called for.
MOMENTS: dict[str, int | str] = {
    "it opens its invocation": "LOCK TABLE scenario.scheduler_runs IN ACCESS EXCLUSIVE MODE",
    "it reads the list of mentors": "LOCK TABLE scenario.peer_mentors IN ACCESS EXCLUSIVE MODE",
    "the first page is in hand": 1,
    "a page with a poison mentor is in hand": small_world.IN_THE_MIDDLE,
    "the last page is in hand": 25,
    CLOSING: "UPDATE ON scenario.scheduler_runs FOR EACH ROW WHEN (NEW.status <> 'running')",
}


@contextmanager
def waiting_at(installation: FaultyInstallation, moment: str) -> Iterator[None]:
    """Let whatever comes to this moment wait until the block ends."""
    at = MOMENTS[moment]
    if isinstance(at, int):
        with installation.block_notifications_of(mentor_id(at)):
            yield
    elif moment == CLOSING:
        with installation.block(at):
            yield
    else:
        with installation.engine.connect() as holder:
            holder.exec_driver_sql(at)
            yield


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_is_closed_for_it_and_the_next_one_does_the_rest(
    installation: FaultyInstallation, moment: str
) -> None:
    """Out of memory, a pulled plug: what was sent stays sent, and what was not is sent once."""
    with waiting_at(installation, moment), installation.running() as run:
        wait_until_blocked(installation.engine)
        run.process.send_signal(signal.SIGKILL)
        evidence = run.end()
    assert evidence.killed
    installation.judge(evidence)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_told_to_stop_at_any_moment_closes_its_log_within_two_seconds(
    installation: FaultyInstallation, moment: str
) -> None:
    """A deployment stops the container, and kills whatever is not gone soon."""
    with ExitStack() as obstacle:
        obstacle.enter_context(waiting_at(installation, moment))
        with installation.running() as run:
            wait_until_blocked(installation.engine)
            told_to_stop_at = datetime.now(UTC)
            run.process.send_signal(signal.SIGTERM)
            if moment == CLOSING:
                # What has begun to close is not interrupted.
                obstacle.close()
            evidence = run.end(told_to_stop_at=told_to_stop_at)
    installation.judge(evidence)
