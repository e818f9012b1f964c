"""The code location as Dagster imports it, and the cron expression of its schedules."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scenario_pipeline.defs.schedules import checked_cron
from scenario_pipeline.errors import UserError
from scenario_pipeline_tests.support.project import PROJECT


def test_the_code_location_loads_without_a_variable_a_database_or_noise() -> None:
    """Dagster imports it in every process: it must neither connect nor print."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import scenario_pipeline.definitions"],
        env={"PATH": "", "PYTHONPATH": str(PROJECT), "SCENARIO_DATABASE_URL": "postgresql://127.0.0.1:1/none"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("cron", ["every hour", "61 * * * *", "0 * * *"])
def test_a_cron_expression_that_cannot_work_is_one_sentence(cron: str) -> None:
    """A schedule that never ticks would go unnoticed for as long as nobody misses a message."""
    with pytest.raises(UserError, match=r"^SCENARIO_CRON "):
        checked_cron(cron)
