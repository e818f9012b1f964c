"""The sum of the replies for one page (contract section 6).

Belongs here: counting replies and errors by mentor. Does not belong here: obtaining the replies
(`engines.http.page_calls`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from scenario_pipeline.batch_stats import DISPATCHED, NO_ORGANISATION, UNKNOWN_SCENARIO, BatchStats, OutcomeKey
from scenario_pipeline.engines.api import EvaluationReply, MentorResult
from scenario_pipeline.engines.http.client import unusable
from scenario_pipeline.errors import ErrorInfo
from scenario_pipeline.records import MentorError, Page, PageResult, RunOrder


class Tally:
    """Counts each mentor of a page at most once: as evaluated, or as an error.

    Args:
        order: the order for which they are evaluated.
        page: the page whose mentors are counted.
        organisations: the organisation of each mentor who has one.
    """

    def __init__(self, order: RunOrder, page: Page, organisations: Mapping[str, str]) -> None:
        self._scenario_types, self._page, self._organisations = order.scenario_types, page, organisations
        self._evaluated: Counter[str] = Counter()
        self._outcomes: Counter[OutcomeKey] = Counter()
        self._errors: dict[str, ErrorInfo] = {}

    def fits(self, reply: EvaluationReply) -> bool:
        """Whether each result stays within the scenarios of the request."""
        return all(
            result.dispatched.keys() <= set(self._scenario_types)
            and sum(result.dispatched.values()) + sum(result.suppressed.values()) <= len(self._scenario_types)
            for result in reply.results
        )

    def add_reply(self, mentor_ids: Iterable[str], reply: EvaluationReply) -> None:
        """Count one result for each of these mentors; ignore results for anyone else."""
        reported: dict[str, list[MentorResult]] = {}
        for result in reply.results:
            reported.setdefault(str(result.peer_mentor_id), []).append(result)
        for mentor_id in mentor_ids:
            match reported.get(mentor_id, []):
                case [result] if result.error is None:
                    self._add_result(mentor_id, result)
                case [result] if result.error is not None:
                    self._errors[mentor_id] = result.error.info()
                case []:
                    self._errors[mentor_id] = unusable("the trigger engine's reply has no result for this mentor")
                case _:
                    self._errors[mentor_id] = unusable("the trigger engine's reply has two results for this mentor")

    def _add_result(self, mentor_id: str, result: MentorResult) -> None:
        organisation = self._organisations.get(mentor_id, NO_ORGANISATION)
        self._evaluated[organisation] += 1
        for scenario, n in result.dispatched.items():
            self._outcomes[organisation, scenario, DISPATCHED] += n
        for reason, n in result.suppressed.items():
            self._outcomes[organisation, UNKNOWN_SCENARIO, reason] += n

    def add_errors(self, mentor_ids: Iterable[str], info: ErrorInfo) -> None:
        """Count these mentors as errors for the same reason."""
        self._errors |= dict.fromkeys(mentor_ids, info)

    def result(self, unprocessed: Collection[str], failure: ErrorInfo | None) -> PageResult:
        """Return the page's result.

        Args:
            unprocessed: the mentors counted neither as evaluated nor as errors.
            failure: why the run cannot go on, if it cannot.
        """
        stats = BatchStats(+self._evaluated, +self._outcomes, len(self._errors), pages_processed=1)
        ids = self._page.mentor_ids
        errors = tuple(MentorError(m, self._errors[m]) for m in ids if m in self._errors)
        return PageResult(stats, errors, tuple(m for m in ids if m in unprocessed), failure if unprocessed else None)
