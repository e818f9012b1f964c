"""Commits whose answer is lost: the ledger says whether they happened."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.records import DispatchMode, Page, PageResult, RunOrder
from scenario_pipeline.storage import database
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline_tests.support.invariants import consistent, number_of_pages, sent
from scenario_pipeline_tests.support.people import organisation_id, quiet_mentors
from scenario_pipeline_tests.support.runs import Log, make_page, make_request, run_invocation, run_page
from scenario_pipeline_tests.support.sql_pages import dispatched_on_d, make_poisonous, retries

Loss = Literal["request", "answer"]


class LossyProxy:
    """A TCP proxy before the server that loses one COMMIT, before or after it took effect, and cuts the connection.

    Args:
        url: the URL of the database behind it.
    """

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lose: Loss | None = None
        self._refuse = 0
        self._closing = False
        self.lost = 0
        self._threads: list[threading.Thread] = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """The URL of the database through the proxy."""
        port = self._listener.getsockname()[1]
        return self._target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    def lose_next_commit(self, lose: Loss, *, then_refuse: int = 0) -> None:
        """Lose the request of the next COMMIT or the answer to it, and refuse this many connections after it."""
        self._lose, self._refuse = lose, then_refuse

    def __enter__(self) -> LossyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        # A listener does not wake up when it is closed: a last connection makes it look.
        self._closing = True
        with socket.create_connection(self._listener.getsockname()):
            pass
        for thread in self._threads:
            thread.join(timeout=30)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._closing:
                client.close()
                return
            if self.lost and self._refuse:
                self._refuse -= 1
                client.close()
                continue
            thread = threading.Thread(target=self._forward, args=(client,))
            thread.start()
            self._threads.append(thread)

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection((self._target.host, self._target.port)) as upstream:
            losing = False
            while True:
                for source in select.select([client, upstream], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is client and self._lose and b"COMMIT\0" in data:
                        lose, self._lose, losing = self._lose, None, True
                        self.lost += 1
                        if lose == "request":
                            return
                    # The tag of the answer says that the server has committed.
                    if source is upstream and losing and b"COMMIT\0" in data:
                        return
                    (upstream if source is client else client).sendall(data)


@pytest.fixture
def proxy(database_url: str) -> Iterator[LossyProxy]:
    """A proxy before this test's database."""
    with LossyProxy(database_url) as proxy:
        yield proxy


@pytest.fixture
def through_proxy(proxy: LossyProxy) -> Iterator[Engine]:
    """An engine that connects through the proxy."""
    engine = database.connect(proxy.url)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("mode", ["live", "dry_run"])
@pytest.mark.parametrize("lose", ["answer", "request"])
def test_a_page_whose_commit_was_lost_is_counted_once(
    engine: Engine, proxy: LossyProxy, through_proxy: Engine, lose: Loss, mode: DispatchMode
) -> None:
    """Counting it twice lies to the operator; not at all leaves notifications that nobody accounts for."""
    mentors = quiet_mentors(engine, 4, opted_out=())
    with engine.begin() as connection:
        make_poisonous(connection, mentors[:1])
    log = Log()
    proxy.lose_next_commit(lose)

    result = run_page(engine, make_page(mentors, number=3, dispatch_mode=mode), evaluate_with=through_proxy, log=log)

    assert proxy.lost == 1
    assert result.stats == BatchStats(
        {organisation_id(): 3}, {(organisation_id(), "inactivity", "dispatched"): 3}, total_errors=1, pages_processed=1
    )
    assert [error.peer_mentor_id for error in result.errors] == mentors[:1]
    assert retries(log) == [(3, 1, "network_error")]
    assert sent(engine) == ([dispatched_on_d(mentor) for mentor in mentors[1:]] if mode == "live" else [])
    assert number_of_pages(engine) == 1
    consistent(engine)


@pytest.mark.parametrize("lose", ["answer", "request"])
def test_an_invocation_that_loses_a_commit_closes_with_counters_that_equal_the_rows(
    engine: Engine, proxy: LossyProxy, through_proxy: Engine, lose: Loss
) -> None:
    """The same for the whole run, in the log and in the ledger."""
    mentors = quiet_mentors(engine, 4, opted_out=())
    log = Log()

    report = run_invocation(
        engine,
        make_request(page_size=2),
        log=log,
        trigger_engine=LosingCommit(SqlTriggerEngine(through_proxy), proxy, page_number=2, lose=lose),
    )

    assert (report.status, report.stats) == (
        "completed",
        BatchStats({organisation_id(): 4}, {(organisation_id(), "inactivity", "dispatched"): 4}, pages_processed=2),
    )
    assert [entry["event"] for entry in log.entries] == [
        "scheduler_run_started",
        "trigger_engine_page_retried",
        "scheduler_run_completed",
    ]
    assert sent(engine) == [dispatched_on_d(mentor) for mentor in mentors]
    consistent(engine)


@dataclass(frozen=True)
class LosingCommit:
    """A trigger engine whose network loses the commit of one page, and what else happens then."""

    engine: SqlTriggerEngine
    proxy: LossyProxy
    page_number: int
    lose: Loss = "answer"
    then_refuse: int = 0
    budget: TimeBudget | None = None

    def evaluate_page(
        self, order: RunOrder, page: Page, invocation_id: str, budget: TimeBudget, logger: StructuredLogger
    ) -> PageResult:
        """Evaluate a page, with its commit lost if it is the one."""
        if page.number == self.page_number:
            self.proxy.lose_next_commit(self.lose, then_refuse=self.then_refuse)
        return self.engine.evaluate_page(order, page, invocation_id, self.budget or budget, logger)


@pytest.mark.parametrize("lose", ["answer", "request"])
def test_a_commit_is_settled_although_the_budget_ended_with_it(
    engine: Engine, proxy: LossyProxy, through_proxy: Engine, lose: Loss
) -> None:
    """A page called unprocessed whose notifications were sent: the counters would not equal the rows."""
    mentors = quiet_mentors(engine, 2, opted_out=())
    # The budget is over as soon as the commit is lost, whatever the speed of this machine.
    budget = TimeBudget(0.0, 60.0, clock=lambda: 60.2 if proxy.lost else 0.0)
    trigger_engine = LosingCommit(SqlTriggerEngine(through_proxy), proxy, page_number=1, lose=lose, budget=budget)

    report = run_invocation(engine, trigger_engine=trigger_engine)

    was_committed = lose == "answer"
    assert len(sent(engine)) == (len(mentors) if was_committed else 0)
    assert (report.status, report.remaining) == (("completed", 0) if was_committed else ("partial", 2))
    consistent(engine)


@pytest.mark.parametrize("lose", ["answer", "request"])
def test_a_run_that_fails_after_a_lost_commit_counts_what_was_committed(
    engine: Engine, proxy: LossyProxy, through_proxy: Engine, lose: Loss
) -> None:
    """A server that restarts right after a commit answers neither that one nor the next connection."""
    quiet_mentors(engine, 4, opted_out=())
    trigger_engine = LosingCommit(SqlTriggerEngine(through_proxy), proxy, page_number=1, lose=lose, then_refuse=1000)

    report = run_invocation(engine, make_request(page_size=2), trigger_engine=trigger_engine)

    committed = 2 if lose == "answer" else 0
    assert len(sent(engine)) == committed
    assert (report.status, report.stats.total_dispatched, report.remaining) == ("failed", committed, 4 - committed)
    consistent(engine)
