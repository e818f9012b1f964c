"""The checker of the fault tests can fail: for each promise, evidence that breaks it and the sentence that says so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from scenario_pipeline.engines import sql
from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.invocation.closing import close_dead_invocation
from scenario_pipeline.invocation.run import Invocation
from scenario_pipeline.records import Page
from scenario_pipeline.storage import database
from scenario_pipeline_tests.faults import checker, small_world
from scenario_pipeline_tests.faults.checker import Evidence
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import mentor_id, new_invocation_id
from scenario_pipeline_tests.support.runs import Log, make_request, run_invocation

TIME_BUDGET_SECONDS = 30.0


@pytest.fixture
def owner(small_url: str) -> Iterator[Engine]:
    engine = database.connect(small_url)
    yield engine
    engine.dispose()


def run(owner: Engine) -> bytes:
    """Make a run and return its log."""
    log = Log()
    run_invocation(owner, make_request(page_size=small_world.PAGE_SIZE), log=log)
    return b"".join(log.lines)


def complaints(
    evidence: Evidence, owner: Engine, next_run: Callable[[Engine], bytes] = run, sent: checker.Sent | None = None
) -> list[str]:
    expected = small_world.expected() if sent is None else sent
    return list(checker.complaints(evidence, owner, expected, lambda: next_run(owner)))


@pytest.fixture
def genuine(owner: Engine) -> Evidence:
    """What a run leaves behind that nothing disturbs."""
    log = run(owner)
    closed_at = datetime.fromisoformat(json.loads(log.splitlines()[-1])["timestamp"])
    return Evidence(log, TIME_BUDGET_SECONDS, exit_status=0, told_to_stop_at=closed_at, ended_at=closed_at)


def test_genuine_evidence_is_accepted(genuine: Evidence, owner: Engine) -> None:
    """A checker that always complains is as useless as one that never does."""
    assert complaints(genuine, owner) == []


def test_a_run_that_never_began_is_accepted_and_done_by_the_next(owner: Engine) -> None:
    """A process that is killed before its first entry has broken no promise."""
    assert complaints(Evidence(b"", TIME_BUDGET_SECONDS, killed=True), owner) == []


def edited(evidence: Evidence, line: int, **fields: Any) -> Evidence:
    """Return the evidence with some fields of one entry changed."""
    lines = [json.loads(text) for text in evidence.log.splitlines()]
    lines[line] |= fields
    return replace(evidence, log=b"".join(json.dumps(entry).encode() + b"\n" for entry in lines))


def later(evidence: Evidence, line: int, seconds: float) -> str:
    """Return the entry's timestamp, moved by this many seconds."""
    moment = datetime.fromisoformat(json.loads(evidence.log.splitlines()[line])["timestamp"])
    stamp = (moment + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    return stamp.replace("+00:00", "Z")


def without_the_last_line(evidence: Evidence) -> Evidence:
    return replace(evidence, log=b"".join(evidence.log.splitlines(keepends=True)[:-1]))


def partial(evidence: Evidence) -> Evidence:
    """Return the evidence as if the run had said that its budget was spent."""
    *entries, completed = map(json.loads, evidence.log.splitlines())
    spent = completed | {"event": "scheduler_run_partial", "reason": "time_budget", "remaining_unprocessed_count": 0}
    lines = [*entries, spent, completed | {"completed": False, "duration_ms": 400}]
    return replace(evidence, log=b"".join(json.dumps(entry).encode() + b"\n" for entry in lines))


Doctor = Callable[[Evidence], Evidence]
DOCTORED_LOGS: dict[str, tuple[Doctor, str]] = {
    "no closing entry": (without_the_last_line, r"does not end with one scheduler_run_completed"),
    "no closing entry of a killed process whose row is closed": (
        lambda evidence: replace(without_the_last_line(evidence), killed=True),
        r"does not end with one scheduler_run_completed",
    ),
    "no first entry": (
        lambda evidence: replace(evidence, log=evidence.log.split(b"\n", 1)[1]),
        r"does not begin with one scheduler_run_started",
    ),
    "an entry twice": (
        lambda evidence: replace(evidence, log=evidence.log + evidence.log.splitlines(keepends=True)[-1]),
        r"does not end with one scheduler_run_completed",
    ),
    "a torn line at the end": (lambda evidence: replace(evidence, log=evidence.log[:-9]), r"^the last line .* is torn"),
    "two lines glued together": (
        lambda evidence: replace(evidence, log=evidence.log.replace(b"\n", b"", 1)),
        r"is no strict JSON",
    ),
    "a mentor's error too few": (
        lambda evidence: replace(
            evidence,
            log=b"".join(line for line in evidence.log.splitlines(keepends=True) if b"peer_mentor" not in line),
        ),
        r"0 mentor_evaluation_error entries, total_errors 1",
    ),
    "a total that is not the ledger's": (
        lambda evidence: edited(evidence, -1, total_suppressed=3, suppressed_by_reason={"duplicate": 3}),
        r"^total_suppressed is 3 in the log and 2 in the ledger",
    ),
    "a total that is not the number of rows": (
        lambda evidence: edited(evidence, -1, total_dispatched=27),
        r"^the log says 27 dispatched, there are 26 notifications",
    ),
    "mentors who are neither evaluated nor left": (
        lambda evidence: edited(evidence, -1, total_evaluated=23),
        r"evaluated \+ errors \+ remaining is not total_active_mentors",
    ),
    "a log closed too late": (
        lambda evidence: edited(evidence, -1, timestamp=later(evidence, 0, 32.2)),
        r"^the log was closed 32\.2 s after it was begun, 32\.0 s are allowed",
    ),
    "a duration by a clock that is behind": (
        lambda evidence: edited(evidence, -1, timestamp=later(evidence, 0, 5), duration_ms=0),
        r"^duration_ms says 0\.0 s, the log 5\.0 s",
    ),
    "a duration by a clock that is ahead": (
        lambda evidence: edited(evidence, -1, duration_ms=45_200),
        r"^duration_ms says 45\.2 s, .* and 32\.0 s are allowed",
    ),
    "a budget by another clock": (
        partial,
        r"^its budget of 30\.0 s was spent after 0\.\d s",
    ),
    "a process that ends too late": (
        lambda evidence: replace(evidence, ended_at=datetime.fromisoformat(later(evidence, 0, 37.2))),
        r"^the process ended 37\.2 s after it began, 37\.0 s are allowed",
    ),
    "a process that takes too long to stop": (
        lambda evidence: replace(evidence, told_to_stop_at=datetime.fromisoformat(later(evidence, -1, -2.1))),
        r"^the log was closed 2\.1 s after SIGTERM, 2\.0 s are allowed",
    ),
    "another exit status": (
        lambda evidence: replace(evidence, exit_status=3),
        r"^the exit status is 3, the log says \[0\]",
    ),
    "an exit status that does not tell of a lost log": (
        lambda evidence: replace(evidence, log_lost=True),
        r"^the exit status is 0, the log says \[1\]",
    ),
}


@pytest.mark.parametrize("fault", DOCTORED_LOGS)
def test_evidence_that_breaks_a_promise_gets_the_complaint_that_names_it(
    genuine: Evidence, owner: Engine, fault: str
) -> None:
    """Otherwise a run could leave it behind and pass."""
    doctor, complaint = DOCTORED_LOGS[fault]
    assert re.search(complaint, "\n".join(complaints(doctor(genuine), owner)), flags=re.M)


QUIET = mentor_id(1)
DOCTORED_DATABASES: dict[str, tuple[str, str]] = {
    "a notification twice": (
        "ALTER TABLE scenario.scenario_notifications DROP CONSTRAINT scenario_notifications_dedup_key;"
        "ALTER TABLE scenario.scenario_notifications DROP CONSTRAINT scenario_notifications_evaluation_date;"
        "ALTER TABLE scenario.scenario_notifications DROP CONSTRAINT scenario_notifications_cooldown;"
        "INSERT INTO scenario.scenario_notifications SELECT (jsonb_populate_record(n, "
        f"jsonb_build_object('id', gen_random_uuid()))).* FROM scenario.scenario_notifications n "
        f"WHERE user_id = '{QUIET}'",
        rf"^inactivity of mentor {QUIET}: 2 rows with dedup_key",
    ),
    "a notification that the next run does not make up for": (
        f"DELETE FROM scenario.scenario_notifications WHERE user_id = '{QUIET}';"
        f"UPDATE scenario.peer_mentors SET notifications_opt_out = true WHERE id = '{QUIET}'",
        rf"^inactivity \S+ of mentor {QUIET} is lost",
    ),
    "a notification that was not due": (
        "UPDATE scenario.peer_mentors SET notifications_opt_out = false "
        f"WHERE id = '{mentor_id(small_world.OPTED_OUT)}'",
        rf"^inactivity \S+ of mentor {mentor_id(small_world.OPTED_OUT)} was not due",
    ),
    "counters of a page that are not its rows": (
        "UPDATE scenario.scheduler_run_pages SET total_evaluated = total_evaluated + 1 WHERE page_number = 1",
        r"total_evaluated is 24, its pages add up to 25",
    ),
    "a row that is open": (
        "UPDATE scenario.scheduler_runs SET status = 'running', finished_at = NULL",
        r"^the process was not killed, and its invocation is open in the ledger",
    ),
    "a row that ended in another way": (
        "UPDATE scenario.scheduler_runs SET status = 'failed'",
        r"^the invocation is completed in the log and failed in the ledger",
    ),
    "no row": (
        "DELETE FROM scenario.scheduler_run_pages; DELETE FROM scenario.scheduler_runs",
        r"^the invocation is in the log and not in the ledger",
    ),
}


@pytest.mark.parametrize("fault", DOCTORED_DATABASES)
def test_a_database_that_breaks_a_promise_gets_the_complaint_that_names_it(
    genuine: Evidence, owner: Engine, fault: str
) -> None:
    """A log alone proves nothing."""
    statements, complaint = DOCTORED_DATABASES[fault]
    with owner.begin() as connection:
        for statement in statements.split(";"):
            connection.execute(text(statement))
    assert re.search(complaint, "\n".join(complaints(genuine, owner)), flags=re.M)


def test_a_log_that_others_had_to_close_is_accepted_of_a_killed_process_only(genuine: Evidence, owner: Engine) -> None:
    """A process that ends by itself and leaves its log open would otherwise be covered up by the checker itself."""
    with owner.begin() as connection:
        connection.execute(text("UPDATE scenario.scheduler_runs SET status = 'running', finished_at = NULL"))
    found = complaints(without_the_last_line(genuine), owner)
    assert "the process was not killed, and its log had to be closed for it" in found


def closed_between_two_pages(owner: Engine) -> Evidence:
    """Make a run whose invocation is closed for it while it goes on, and return all of its log."""
    log, invocation_id = Log(), new_invocation_id()
    invocation = Invocation(
        make_request(page_size=small_world.PAGE_SIZE),
        invocation_id,
        database=owner,
        trigger_engine=SqlTriggerEngine(owner),
        logger=log.logger(invocation_id),
    )
    invocation.open()
    first, second, third = invocation.plan()
    outcomes = [invocation.evaluate(first)]
    close_dead_invocation(owner, invocation_id, log.logger(invocation_id), logged=log.entries)
    outcomes += [invocation.evaluate(second), invocation.evaluate(third)]
    invocation.finish(outcomes)
    return Evidence(b"".join(log.lines), TIME_BUDGET_SECONDS, killed=True)


def test_a_page_that_is_not_committed_into_a_closed_invocation_is_accepted(owner: Engine) -> None:
    """A frozen process that goes on when its invocation is closed has nothing more to say."""
    assert complaints(closed_between_two_pages(owner), owner) == []


def test_a_page_committed_into_a_closed_invocation_is_complained_of(
    owner: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once 960 notifications carried the id of an invocation whose log said 0: a claim did not ask if it was open."""

    def claim_without_asking(connection: Connection, page: Page, invocation_id: str) -> None:
        values = {"id": invocation_id, "page": page.number, "last": page.mentor_ids[-1]}
        statement = "INSERT INTO scenario.scheduler_run_pages (invocation_id, page_number, last_mentor_id)"
        connection.execute(text(f"{statement} VALUES (:id, :page, :last)"), values)

    monkeypatch.setattr(sql, "claim_page", claim_without_asking)
    found = "\n".join(complaints(closed_between_two_pages(owner), owner))
    assert re.search(r"^the log says \d+ dispatched, there are \d+ notifications", found, flags=re.M)
    assert re.search(r"total_evaluated is 9, its pages add up to \d+", found)


def test_a_next_run_that_does_not_complete_is_complained_of(genuine: Evidence, owner: Engine) -> None:
    """A fault must not leave anything behind that the next run stumbles over."""

    def failing_run(owner: Engine) -> bytes:
        with owner.begin() as connection:
            for statement in (
                "CREATE FUNCTION scenario.full_disk() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'; END $$",
                "CREATE TRIGGER full_disk BEFORE INSERT ON scenario.scheduler_run_pages "
                "FOR EACH ROW EXECUTE FUNCTION scenario.full_disk()",
            ):
                connection.execute(text(statement))
        return run(owner)

    assert "the next run, which nothing disturbed, is not completed" in complaints(genuine, owner, failing_run)


def test_what_is_expected_is_what_one_undisturbed_run_sends(owner: Engine) -> None:
    """The rules are written twice, once without any SQL: both must give the same result."""
    run(owner)
    assert {(row[0], row[1], row[4]) for row in sent(owner)} == small_world.expected()
