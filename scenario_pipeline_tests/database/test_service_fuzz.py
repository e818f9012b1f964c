"""The service under whatever its OpenAPI document allows, and under what it does not."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from sqlalchemy import Engine

from scenario_pipeline.engines.api import EVALUATIONS_PATH, HEALTH_PATH
from scenario_pipeline.engines.service.app import EngineService
from scenario_pipeline.storage import database
from scenario_pipeline_tests.support.people import quiet_mentors
from scenario_pipeline_tests.support.runs import Log
from scenario_pipeline_tests.support.service import TOKEN


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        (EVALUATIONS_PATH, "POST", GenerationMode.POSITIVE),
        (EVALUATIONS_PATH, "POST", GenerationMode.NEGATIVE),
        (HEALTH_PATH, "GET", GenerationMode.POSITIVE),
    ],
)
def test_no_request_is_answered_with_500_or_with_something_undocumented(
    path: str, method: str, mode: GenerationMode, database_url: str, engine: Engine
) -> None:
    """The document is a promise to people who write other clients; a crash is one they cannot handle."""
    quiet_mentors(engine, 3)
    pool = database.connect(database_url)
    log = Log()
    api = schemathesis.openapi.from_asgi("/v1/openapi.json", EngineService(pool, TOKEN, log.logger("")).app())
    statuses: set[int] = set()

    @given(api[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def fuzz(case: schemathesis.Case[Any]) -> None:
        response = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
        statuses.add(response.status_code)
        # What fits the document may still be refused: a key that was used for another request.
        case.validate_response(response, excluded_checks=[checks.positive_data_acceptance])

    fuzz()
    pool.dispose()
    # Within the one millisecond that a caller may leave, nothing can be evaluated.
    assert max(statuses - {504}) < 500
    assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses
