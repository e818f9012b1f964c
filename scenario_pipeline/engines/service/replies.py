"""Replies of the trigger engine: evaluates a request once, and answers a repeated key with the first reply.

Belongs here: the request's transaction, and which replies are kept and removed. Does not belong here: HTTP
(`engines.service.app`), or how matches are dispatched (`engines.sql`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert

from scenario_pipeline.batch_stats import DISPATCHED
from scenario_pipeline.engines.api import EvaluationReply, EvaluationRequest, RemoteError
from scenario_pipeline.engines.sql import Evaluation
from scenario_pipeline.errors import BudgetSpentError, ErrorInfo, ErrorType, SystemicError
from scenario_pipeline.records import PageResult, RunOrder
from scenario_pipeline.storage import source
from scenario_pipeline.storage.database import check_schema, limit_statement_time
from scenario_pipeline.storage.tables import scheduler_runs, trigger_engine_replies
from scenario_pipeline.time_budget import TimeBudget

# A reply is needed as long as its run may repeat the request, which is at most a day.
REPLIES_KEPT = timedelta(days=7)
# Each request adds one reply and removes up to ten old ones, so the table cannot outgrow a week's requests.
REPLIES_REMOVED = 10
# How late a commit may be; a closing run waits longer than this for it.
STANDSTILL_MS = "700"


class RefusedError(Exception):
    """A request that is answered with an error.

    Args:
        status: the HTTP status.
        info: the failure in the body.
        invocation_id: the invocation that sent the request, if known.
    """

    def __init__(self, status: int, info: ErrorInfo, invocation_id: str | None = None) -> None:
        super().__init__(info.error_message)
        self.status, self.info, self.invocation_id = status, info, invocation_id


def refused(status: int, sentence: str, kind: ErrorType = ErrorType.EVALUATION_LOGIC) -> RefusedError:
    """Return the refusal of a request that belongs to no known run."""
    return RefusedError(status, ErrorInfo(kind, sentence))


def reply_to(
    database: Engine, idempotency_key: str, asked: EvaluationRequest, budget: TimeBudget
) -> tuple[dict[str, Any], bool]:
    """Return the reply to a request; its work and its reply are committed together or not at all.

    Args:
        database: pool of connections to the scheduler's own database.
        idempotency_key: the key by which two requests are the same.
        asked: the request.
        budget: limits the statements; nothing is committed after it.

    Returns:
        The reply, and whether it had been given before.

    Raises:
        BudgetSpentError: the budget ended first.
        RefusedError: the schema does not fit, the key was used for another request, its first reply was just removed,
            or the run is closed.
        SystemicError: the source has a mentor twice.
        SQLAlchemyError: the database failed.
    """
    table = trigger_engine_replies
    fingerprint = hashlib.sha256(asked.model_dump_json().encode()).hexdigest()
    with database.begin() as connection:
        _limit(connection, budget)
        _require_schema(connection, asked)
        # A second request with the same key waits here until the first has ended in any way.
        claimed = connection.execute(
            insert(table)
            .values(
                idempotency_key=idempotency_key,
                request_fingerprint=fingerprint,
                created_at=func.clock_timestamp(),
            )
            .on_conflict_do_nothing()
            .returning(table.c.idempotency_key)
        ).scalar_one_or_none()
        if claimed is None:
            return _first_reply(connection, idempotency_key, fingerprint), True
        _limit(connection, budget)
        with connection.begin_nested() as savepoint:
            reply = _evaluate(connection, asked, budget)
            if asked.dispatch_mode == "dry_run":
                savepoint.rollback()
        answer = reply.model_dump(mode="json")
        _limit(connection, budget)
        connection.execute(update(table).where(table.c.idempotency_key == idempotency_key).values(reply=answer))
        remove_old_replies(connection)
        _hold_open(connection, asked)
        # The caller no longer waits, and counts these mentors as not reached.
        if budget.is_spent:
            raise BudgetSpentError
        return answer, False


def _require_schema(connection: Connection, asked: EvaluationRequest) -> None:
    """Refuse to work on a database that was upgraded or replaced after the service started."""
    try:
        check_schema(connection)
    except SystemicError as exc:
        raise RefusedError(503, exc.info, str(asked.invocation_id)) from None


def _hold_open(connection: Connection, asked: EvaluationRequest) -> None:
    """Prevent the closing of the run until the commit, if its ledger is in this database.

    Closing waits for this lock and counts what was committed. The lock is taken last, so that no evaluation holds up a
    closing.

    Raises:
        RefusedError: the run is closed, so nobody would count this reply.
    """
    # If this process now stalls, Postgres ends the transaction instead of letting the closing wait.
    connection.execute(select(func.set_config("idle_in_transaction_session_timeout", STANDSTILL_MS, True)))
    runs = scheduler_runs
    own_run = select(runs.c.status).where(runs.c.invocation_id == str(asked.invocation_id))
    status = connection.execute(own_run.with_for_update(read=True)).scalar_one_or_none()
    if status not in (None, "running"):
        info = ErrorInfo(ErrorType.EVALUATION_LOGIC, "the run is closed: nothing was done for this request")
        raise RefusedError(409, info, str(asked.invocation_id))


def _first_reply(connection: Connection, idempotency_key: str, fingerprint: str) -> dict[str, Any]:
    table = trigger_engine_replies
    first = connection.execute(select(table).where(table.c.idempotency_key == idempotency_key)).one_or_none()
    if first is None:
        # It had blocked the insert, and then another request removed it as too old.
        raise refused(503, "the first reply to this key was just removed: repeat the request", ErrorType.NETWORK)
    if first.request_fingerprint != fingerprint:
        raise refused(422, "the idempotency key was used for another request")
    reply: dict[str, Any] = first.reply
    return reply


def _limit(connection: Connection, budget: TimeBudget) -> None:
    """Limit the next statements to the budget.

    Raises:
        BudgetSpentError: it has ended.
    """
    if budget.is_spent:
        raise BudgetSpentError
    limit_statement_time(connection, budget.remaining_seconds)


def remove_old_replies(connection: Connection) -> None:
    """Remove a few replies that no run can request any more."""
    # This uses the owner's rights, because the scheduler's role may not delete.
    connection.execute(select(func.scenario.remove_old_replies(REPLIES_KEPT, REPLIES_REMOVED)))


def _evaluate(connection: Connection, asked: EvaluationRequest, budget: TimeBudget) -> EvaluationReply:
    """Evaluate those mentors who exist, and count each one separately."""
    mentor_ids = [str(mentor_id) for mentor_id in asked.peer_mentor_ids]
    asked_for = source.keys(mentor_ids)
    mentor = source.mentors(source.access_of(connection), asked_for)
    found = list(connection.execute(select(mentor.c.id).where(mentor.c.id == func.any(asked_for))).scalars())
    existing = set(found)
    if len(existing) != len(found):
        raise SystemicError(source.AMBIGUOUS)
    order = RunOrder(
        evaluation_date=asked.evaluation_date,
        scenario_types=tuple(sorted(set(asked.scenario_types))),
        organisation_ids=(),
        dispatch_mode=asked.dispatch_mode,
        engine_name="sql",
        time_budget_seconds=budget.seconds,
        page_size=None,
        triggered_by="manual",
    )
    present = [mentor_id for mentor_id in mentor_ids if mentor_id in existing]
    result = Evaluation(connection, order, present, str(asked.invocation_id), budget, by_mentor=True).run()
    return _reply_of(mentor_ids, existing, result)


def _reply_of(mentor_ids: list[str], existing: set[str], result: PageResult) -> EvaluationReply:
    """Return one result for each mentor of the request, in its order."""
    errors = {item.peer_mentor_id: item.error for item in result.errors}
    unknown = ErrorInfo(ErrorType.EVALUATION_LOGIC, "there is no such mentor")
    errors |= dict.fromkeys((mentor_id for mentor_id in mentor_ids if mentor_id not in existing), unknown)
    dispatched: dict[str, Counter[str]] = {mentor_id: Counter() for mentor_id in mentor_ids}
    suppressed: dict[str, Counter[str]] = {mentor_id: Counter() for mentor_id in mentor_ids}
    for (mentor_id, scenario, outcome), n in result.stats.outcomes.items():
        if outcome == DISPATCHED:
            dispatched[mentor_id][scenario] += n
        else:
            suppressed[mentor_id][outcome] += n
    return EvaluationReply.model_validate(
        {
            "results": [
                {
                    "peer_mentor_id": UUID(mentor_id),
                    "dispatched": dict(dispatched[mentor_id]),
                    "suppressed": dict(suppressed[mentor_id]),
                    "error": remote_error(errors[mentor_id]) if mentor_id in errors else None,
                }
                for mentor_id in mentor_ids
            ]
        }
    )


def remote_error(info: ErrorInfo) -> RemoteError:
    """Return an error in the form of a reply."""
    return RemoteError(error_type=info.error_type.value, error_message=info.error_message)
