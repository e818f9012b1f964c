"""The guide to delivering notifications, followed by a sender of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import psycopg
import pytest
from sqlalchemy import Engine, make_url, text

from scenario_pipeline.doctor.database import examine_database
from scenario_pipeline.doctor.findings import Status
from scenario_pipeline.settings import Settings
from scenario_pipeline_tests.support.deployment import execute, sql
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import (
    DAY,
    D,
    Mentor,
    insert_mentors,
    insert_notification,
    insert_organisation,
    mentor_id,
)
from scenario_pipeline_tests.support.runs import make_request, run_invocation
from scenario_pipeline_tests.support.waiting import wait_until_blocked

GUIDE = "how-to/deliver-notifications"
MAKE, SKIP, CLAIM, SENT, UNCERTAIN = sql(GUIDE, "scenario_sender")


@dataclass(frozen=True)
class Sender:
    """Somebody who follows the guide.

    Attributes:
        url: of the scheduler's database, for the guide's role.
        owner: an engine for whoever owns the database.
    """

    url: str
    owner: Engine

    def claim(self) -> list[str]:
        """Claim a round; return whom it is for."""
        return [str(row[1]) for row in execute(self.url, CLAIM)]

    def report(self, notification_id: str) -> None:
        """Record a message that was sent."""
        execute(self.url, SENT.replace("00000000-0000-4000-8000-000000000000", notification_id))


@pytest.fixture
def sender(database_url: str, engine: Engine) -> Iterator[Sender]:
    """A sender that has just been set up, over mentors two of whom are due."""
    [setting_up] = sql(GUIDE, "the administrator")
    execute(database_url, setting_up)
    with engine.begin() as connection:
        insert_organisation(connection)
        quiet = [Mentor(n, activities=[D - 30 * DAY]) for n in (1, 2)]
        insert_mentors(connection, [*quiet, Mentor(3, activities=[D - 29 * DAY])])
    as_sender = make_url(database_url).set(username="scenario_sender", password="PASSWORD")
    url = as_sender.render_as_string(hide_password=False)
    try:
        execute(url, MAKE)
        yield Sender(url, engine)
    finally:
        execute(database_url, "DROP OWNED BY scenario_sender CASCADE;\nDROP ROLE scenario_sender")


def test_each_notification_is_claimed_once(sender: Sender) -> None:
    """Nobody wants the same message twice because two rounds overlapped."""
    run_invocation(sender.owner)
    assert sorted(sender.claim()) == [mentor_id(1), mentor_id(2)]
    assert sender.claim() == []
    run_invocation(sender.owner, make_request(D + DAY))
    assert sender.claim() == [mentor_id(3)]


def test_two_senders_at_once_claim_different_rows(sender: Sender) -> None:
    """A second machine is how people make a sender reliable."""
    run_invocation(sender.owner)
    with psycopg.connect(sender.url) as first, ThreadPoolExecutor() as beside:
        claimed = first.execute(CLAIM.encode()).fetchall()
        second = beside.submit(sender.claim)
        wait_until_blocked(sender.owner)
        first.commit()
        assert (len(claimed), second.result(30)) == (2, [])


def test_a_row_that_commits_late_is_not_passed_over(sender: Sender) -> None:
    """Pages commit out of the order of `created_at`: whoever kept a cursor would lose this mentor's message."""
    run_invocation(sender.owner)
    assert len(sender.claim()) == 2
    with sender.owner.begin() as connection:
        insert_notification(connection, mentor_id(3), D, scenario_type="milestone")
        statement = "UPDATE scenario.scenario_notifications SET created_at = '2000-01-01' WHERE scenario_type = :type"
        connection.execute(text(statement), {"type": "milestone"})
    assert sender.claim() == [mentor_id(3)]


def test_what_existed_before_can_be_left_alone(sender: Sender) -> None:
    """Years of old notifications must not go out on the day the sender is switched on."""
    run_invocation(sender.owner)
    execute(sender.url, SKIP)
    assert sender.claim() == []
    assert execute(sender.url, UNCERTAIN) == []


def test_a_sender_that_died_leaves_rows_that_a_person_can_find(sender: Sender) -> None:
    """Neither silence nor a second message may be the answer to a crash."""
    run_invocation(sender.owner)
    first, _ = execute(sender.url, CLAIM)
    sender.report(str(first[0]))
    execute(sender.url, "UPDATE courier.delivered SET claimed_at = now() - interval '1 hour'")
    uncertain = execute(sender.url, UNCERTAIN)
    assert len(uncertain) == 1
    assert uncertain[0][0] != first[1]


def test_a_crossing_dispatched_again_after_a_restore_is_not_delivered_again(sender: Sender) -> None:
    """An older backup does not know what was sent, and gives the same crossing another id."""
    run_invocation(sender.owner)
    assert len(sender.claim()) == 2
    with sender.owner.begin() as connection:
        connection.execute(text("TRUNCATE scenario.scenario_notifications, scenario.scheduler_runs CASCADE"))
    run_invocation(sender.owner)
    assert len(sent(sender.owner)) == 2
    assert sender.claim() == []


def test_the_sender_reads_addresses_and_doctor_is_content(sender: Sender, database_url: str) -> None:
    """A policy that hid an organisation from the sender would leave its mentors without a word."""
    [opening] = sql(GUIDE, "scenario_owner")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(sender.url, "SELECT email FROM scenario.peer_mentors")
    execute(database_url, opening)
    assert len(execute(sender.url, "SELECT email FROM scenario.peer_mentors")) == 3
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(sender.url, "SELECT * FROM scenario.mentor_activities")
    settings = replace(Settings.from_environment({}), database_url=database_url)
    about = [found for found in examine_database(settings) if found.check in ("roles", "row_level_security")]
    assert {found.status for found in about} <= {Status.OK}
