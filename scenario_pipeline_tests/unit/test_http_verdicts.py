"""The tables of classes: what a status, an exception or a `Retry-After` means."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest

from scenario_pipeline.engines.api import Verdict, failure_of, retry_after_seconds, verdict_of
from scenario_pipeline.engines.http.client import failure_of_exception
from scenario_pipeline.errors import ErrorType
from scenario_pipeline_tests.support.http_runs import LOGIC, NETWORK, TIMEOUT


def test_every_status_code_has_one_verdict() -> None:
    """A code nobody thought of must still end up in one of the four types."""
    found = {status: verdict_of(status) for status in range(100, 600)}
    listed = {
        Verdict.ANSWERED: {200},
        Verdict.CONTENT: {400, 413, 422},
        Verdict.TIMED_OUT: {408, 504},
        Verdict.CONFLICT: {409, 423, 425},
    }
    for verdict, statuses in listed.items():
        assert {status for status, given in found.items() if given is verdict} == statuses
    others = set(found) - set().union(*listed.values())
    refusing = {status for status in others if 400 <= status < 500} - {429}
    assert {status for status, given in found.items() if given is Verdict.MISCONFIGURED} == refusing
    assert {status for status, given in found.items() if given is Verdict.UNAVAILABLE} == others - refusing


@pytest.mark.parametrize(
    ("status", "kind", "fails_run", "splits", "retries"),
    [
        (200, NETWORK, False, False, True),
        (302, NETWORK, False, False, True),
        (400, LOGIC, False, True, False),
        (401, LOGIC, True, False, False),
        (403, LOGIC, True, False, False),
        (408, TIMEOUT, False, False, True),
        (409, LOGIC, False, False, True),
        (422, LOGIC, False, True, False),
        (429, NETWORK, False, False, True),
        (500, NETWORK, False, False, True),
        (502, NETWORK, False, False, True),
        (503, NETWORK, False, False, True),
        (504, TIMEOUT, False, False, True),
    ],
)
def test_a_status_says_what_may_be_done_about_it(
    status: int, kind: str, fails_run: bool, splits: bool, retries: bool
) -> None:
    failure = failure_of(status, {}, b"", datetime.now(UTC))
    assert (failure.info.error_type.value, failure.fails_run, failure.splits, failure.retries) == (
        kind,
        fails_run,
        splits,
        retries,
    )


def exceptions_of_the_client() -> list[type[Exception]]:
    def below(kind: type[Exception]) -> Iterator[type[Exception]]:
        yield kind
        for narrower in kind.__subclasses__():
            yield from below(narrower)

    return [kind for root in (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) for kind in below(root)]


@pytest.mark.parametrize("kind", exceptions_of_the_client(), ids=lambda kind: kind.__name__)
def test_every_exception_of_the_client_has_a_class_and_passes_no_text_on(kind: type[Exception]) -> None:
    """A release of the client that adds an exception must not add a type of error, or a name to the log."""
    exc = kind.__new__(kind)
    exc.args = ("Kari Nordmann",)
    failure = failure_of_exception(exc)
    assert "Kari" not in failure.info.error_message
    if issubclass(kind, httpx.TimeoutException):
        expected = ErrorType.TIMEOUT
    elif kind in (httpx.InvalidURL, httpx.UnsupportedProtocol):
        expected = ErrorType.EVALUATION_LOGIC
    else:
        expected = ErrorType.NETWORK
    assert failure.info.error_type is expected


def test_an_exception_of_any_other_library_is_a_failed_call_without_its_text() -> None:
    failure = failure_of_exception(RuntimeError("Kari Nordmann"))
    assert (failure.info.error_type, failure.fails_run, failure.splits) == (ErrorType.EVALUATION_LOGIC, False, False)
    assert "Kari" not in failure.info.error_message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("-1", None),
        ("1.5", None),
        ("\u0663", None),
        ("9" * 5000, None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Wed, 01 Jan 2025 00:01:00 GMT", 60.0),
        ("Wed, 99 Jan 2025 00:01:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, datetime(2025, 1, 1, tzinfo=UTC)) == seconds
