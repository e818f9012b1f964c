"""The end of the time budget over HTTP, and the ledger of what was asked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.defs.reconcile import disagreements
from scenario_pipeline.errors import ErrorType
from scenario_pipeline.invocation.closing import close_dead_invocation
from scenario_pipeline.invocation.run import Invocation
from scenario_pipeline.log.validation import violations
from scenario_pipeline.records import PageUnprocessed
from scenario_pipeline.storage.ledger.closed import closed_invocations
from scenario_pipeline_tests.support.http_runs import TIMEOUT, evaluate_page, http_engine, nobody_due, run
from scenario_pipeline_tests.support.invariants import consistent, sent
from scenario_pipeline_tests.support.people import D, new_invocation_id, quiet_mentors
from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.support.runs import Log, make_page, make_request
from scenario_pipeline_tests.support.scripted_server import Asked, ScriptedServer, never, pass_on, send, well
from scenario_pipeline_tests.support.service import a_request, post
from scenario_pipeline_tests.support.waiting import wait_until


def test_what_was_never_sent_is_left_to_the_next_run_and_what_was_sent_is_settled(engine: Engine) -> None:
    """Nobody is called a failure who was not even tried, and nobody is tried again who was answered for."""
    ids = nobody_due(engine, 10)
    slow = {ids[2]}

    def script(asked: Asked, connection: socket.socket) -> None:
        (never if slow & set(asked.ids) else well)(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, concurrency=1, budget=0.6, page_size=10)
        assert (ran.report.status, ran.report.reason, ran.report.remaining) == ("partial", "time_budget", 6)
        assert (ran.errors, ran.report.stats.total_evaluated) == (dict.fromkeys(ids[2:4], TIMEOUT), 2)
        consistent(engine)
        slow.clear()
        server.asked.clear()
        again = run(engine, server.url, concurrency=1, page_size=10)
    assert server.asked[0].ids == ids[4:6]
    assert again.report.stats.total_evaluated == 10
    consistent(engine)


def test_what_was_sent_for_a_killed_scheduler_is_counted_when_its_log_is_closed(served: str, engine: Engine) -> None:
    """The engine acted, and the process that asked died before it could write the page's row."""
    ids = quiet_mentors(engine, 6)
    request = replace(make_request(page_size=2), engine_name="http")
    invocation_id, log = new_invocation_id(), Log()
    http = http_engine(engine, served)
    killed = Invocation(request, invocation_id, database=engine, trigger_engine=http, logger=log.logger(invocation_id))
    killed.open()
    first, second, _third = killed.plan()
    killed.evaluate(first)
    http.close()
    asked = {"invocation_id": invocation_id, "peer_mentor_ids": list(second.mentor_ids)}
    assert post(served, a_request([], **asked), f"{invocation_id}:2:1").status_code == 200
    assert close_dead_invocation(engine, invocation_id, log.logger(invocation_id), logged=log.entries) is not None
    assert list(violations(log.lines)) == []
    completed = log.entries[-1]
    assert [row[0] for row in sent(engine)] == ids[:3]
    assert (completed["total_dispatched"], completed["dispatched_by_scenario"]) == (3, {"inactivity": 3})
    assert (completed["total_evaluated"], log.entries[-2]["remaining_unprocessed_count"]) == (2, 4)
    with engine.connect() as connection:
        [closed] = closed_invocations(connection, request.evaluation_date)
    assert list(disagreements(closed, log.lines, None)) == []


def test_a_completed_run_counts_what_was_sent_in_a_chunk_whose_reply_was_lost(served: str, engine: Engine) -> None:
    """The engine dispatched and its reply never came: the ledger has more than its pages, and nothing is wrong."""
    ids = quiet_mentors(engine, 4)
    lost = {ids[2]}

    def script(asked: Asked, connection: socket.socket) -> None:
        passed = pass_on(asked, served)
        if lost & set(asked.ids):
            never(asked, connection)
        else:
            send(connection, passed.content, status=passed.status_code)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, budget=0.8)
    assert (ran.report.status, ran.errors) == ("completed", dict.fromkeys(ids[2:], TIMEOUT))
    with engine.connect() as connection:
        [closed] = closed_invocations(connection, D)
    in_pages = closed.pages.total_dispatched
    assert (closed.totals["total_dispatched"], closed.notifications, in_pages < closed.notifications) == (3, 3, True)
    assert list(disagreements(closed, ran.log.lines, None)) == []
    fewer = replace(closed, pages=closed.pages + BatchStats(outcomes={("", "inactivity", "dispatched"): 9}))
    assert "total_dispatched is 3 in the ledger" in " ".join(disagreements(fewer, ran.log.lines, None))


def test_what_the_service_cannot_finish_in_time_it_does_not_do(served: str, engine: Engine) -> None:
    """A notification that is committed after its run was closed would be in no total, for good."""
    quiet_mentors(engine, 3)
    with engine.begin() as connection:
        connection.execute(text("""
            CREATE FUNCTION scenario.slow() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_sleep(0.6); RETURN NEW; END $$"""))  # fmt: skip
        connection.execute(text(
            "CREATE TRIGGER slow BEFORE INSERT ON scenario.scenario_notifications "
            "FOR EACH ROW EXECUTE FUNCTION scenario.slow()"))  # fmt: skip
    ran = run(engine, served, budget=0.8, chunk_size=3)
    assert (ran.report.stats.total_dispatched, set(ran.errors.values())) == (0, {TIMEOUT})
    wait_until(lambda: not active_backends(engine), "the service has finished its requests")
    assert sent(engine) == []
    consistent(engine)


def active_backends(engine: Engine) -> int:
    """How many other connections of this database are in the middle of something."""
    with engine.connect() as connection:
        n: int = connection.execute(text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND state <> 'idle'")).scalar_one()  # fmt: skip
    return n


def test_an_answer_that_comes_after_the_budget_is_asked_for_once_more(engine: Engine) -> None:
    """The engine acted: its first reply is what counts, if it can be had at all."""
    ids = nobody_due(engine, 2)

    def script(asked: Asked, connection: socket.socket) -> None:
        (never if len(server.asked) == 1 else well)(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, budget=0.4)
    assert (ran.report.status, ran.errors, ran.report.stats.total_evaluated) == ("completed", {}, len(ids))
    assert [asked.key for asked in server.asked] == [server.asked[0].key] * 2


def test_a_budget_too_small_for_anything_is_kept_all_the_same(engine: Engine) -> None:
    """The first page may take a second of its own, so that every run gets on; an engine that hangs gets no more."""
    nobody_due(engine, 6)
    with ScriptedServer(never) as server:
        ran = run(engine, server.url, budget=0.001, concurrency=1)
    assert (ran.report.status, ran.report.remaining, len(ran.errors)) == ("partial", 4, 2)
    consistent(engine)


@pytest.mark.parametrize("was_reported", [True, False])
def test_a_re_execution_evaluates_only_the_rest_of_a_page(was_reported: bool, engine: Engine) -> None:
    """What the failed run was answered for is in its ledger; the re-execution counts the others and nobody twice."""
    ids = nobody_due(engine, 6)
    token_is_good = [True]

    def script(asked: Asked, connection: socket.socket) -> None:
        if token_is_good[0] or ids[0] in asked.ids:
            well(asked, connection)
        else:
            send(connection, b"", status=401)

    request = make_request()
    first_id, second_id, log = new_invocation_id(), new_invocation_id(), Log()
    with ScriptedServer(script) as server:
        token_is_good[0] = False
        http = http_engine(engine, server.url, concurrency=1)
        first = Invocation(request, first_id, database=engine, trigger_engine=http, logger=log.logger(first_id))
        first.open()
        pages = first.plan()
        outcomes = [first.evaluate(page) for page in pages]
        report = first.finish(outcomes)
        assert (report.status, report.stats.total_evaluated, report.remaining) == ("failed", 2, 4)
        assert [o.page.mentor_ids for o in outcomes if isinstance(o, PageUnprocessed)] == [tuple(ids[2:])]
        token_is_good[0] = True
        second = Invocation(
            request,
            second_id,
            database=engine,
            trigger_engine=http,
            logger=log.logger(second_id),
            parent_invocation_id=first_id,
        )
        second.open()
        if not was_reported:  # the process of the first run died between the page's commit and the end of its step
            outcomes = [second.evaluate(page) for page in pages]
        report = second.finish(outcomes)
        assert (report.status, report.stats.total_evaluated, report.total_active_mentors) == ("completed", 4, 4)
        http.close()
    assert list(violations(log.lines)) == []
    consistent(engine)


def test_a_repeated_page_is_answered_from_the_ledger(engine: Engine) -> None:
    """A step that is run again must not send anything again, and must say the same of those who were left."""
    page = make_page(nobody_due(engine, 6), time_budget_seconds=0.6)
    invocation_id = new_invocation_id()

    def script(asked: Asked, connection: socket.socket) -> None:
        (never if page.mentor_ids[2] in asked.ids else well)(asked, connection)

    with ScriptedServer(script) as server:
        http = http_engine(engine, server.url, concurrency=1)
        first = evaluate_page(http, engine, page, invocation_id)
        requests = len(server.asked)
        assert (first.stats.total_evaluated, len(first.errors), first.unprocessed) == (2, 2, page.mentor_ids[4:])
        assert evaluate_page(http, engine, page, invocation_id) == first
        assert len(server.asked) == requests
        http.close()


def test_a_ledger_that_cannot_be_written_fails_the_run(engine: Engine) -> None:
    """What the ledger does not hold has not happened, as far as the totals go; and it is said whose fault it is."""
    nobody_due(engine, 2)

    def script(asked: Asked, connection: socket.socket) -> None:
        with engine.begin() as own:
            own.execute(text("ALTER TABLE scenario.scheduler_run_pages DROP COLUMN last_mentor_id"))
        well(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url)
    assert (ran.report.status, ran.report.remaining, ran.errors) == ("failed", 2, {})
    assert ran.report.failure is not None
    assert ran.report.failure.error_type is ErrorType.DATABASE


def test_a_resolver_that_hangs_does_not_hold_up_the_end(engine: Engine) -> None:
    """A name server that does not answer takes half a minute to give up on; nobody waits for that."""
    nobody_due(engine, 2)
    code = (
        "import socket, sys, time\n"
        "real, hangs = socket.getaddrinfo, ('engine.example', b'engine.example')\n"
        "socket.getaddrinfo = lambda host, *a, **k: time.sleep(60) if host in hangs else real(host, *a, **k)\n"
        "from scenario_pipeline_tests.support.http_runs import run\n"
        "from scenario_pipeline.storage import database\n"
        "ran = run(database.connect(sys.argv[1]), 'https://engine.example', budget=0.5)\n"
        "print(ran.report.stats.total_errors)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, engine.url.set(drivername="postgresql").render_as_string(False)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
