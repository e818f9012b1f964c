"""Both ends of the project: its `http` engine asks its own service."""

from __future__ import annotations

import socket

from sqlalchemy import Engine, text

from scenario_pipeline_tests.support.http_runs import evaluate_page, http_engine, run
from scenario_pipeline_tests.support.invariants import consistent, sent
from scenario_pipeline_tests.support.people import new_invocation_id, organisation_id, quiet_mentors
from scenario_pipeline_tests.support.runs import make_page, run_page
from scenario_pipeline_tests.support.scripted_server import Asked, ScriptedServer, pass_on, send


def test_a_mentor_who_is_no_longer_active_is_counted_as_the_sql_engine_does(served: str, engine: Engine) -> None:
    """Somebody who left between the list and the evaluation belongs to no organisation any more."""
    ids = quiet_mentors(engine, 2)
    with engine.begin() as connection:
        connection.execute(text("UPDATE scenario.peer_mentors SET status = 'left' WHERE id = :id"), {"id": ids[0]})
    http = http_engine(engine, served)
    page = make_page(ids, dispatch_mode="dry_run")
    over_http = evaluate_page(http, engine, page, new_invocation_id())
    in_sql = run_page(engine, page)
    assert over_http == in_sql
    assert over_http.stats.evaluated_by_organisation == {"": 1, organisation_id(): 1}
    http.close()


def test_an_answer_lost_after_the_engine_acted_doubles_nothing(served: str, engine: Engine) -> None:
    """Without the key the second request would find every mentor notified, and the run would count none."""
    ids = quiet_mentors(engine, 6)
    lost: set[str] = set()

    def script(asked: Asked, connection: socket.socket) -> None:
        reply = pass_on(asked, served)
        if asked.key in lost:
            send(connection, reply.content, status=reply.status_code)
        lost.add(asked.key)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, chunk_size=2, concurrency=3)
    stats = ran.report.stats
    assert (stats.total_dispatched, stats.suppressed_by_reason, ran.errors) == (5, {"opted_out": 1}, {})
    assert len(server.asked) == 6
    assert [row[0] for row in sent(engine)] == [m for m in ids if m != ids[3]]
    consistent(engine)
