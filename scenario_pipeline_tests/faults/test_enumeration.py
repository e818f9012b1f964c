"""A run interrupted at each of its points in turn: the enumeration is complete when one passes untouched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.support.server import own_database

pytestmark = pytest.mark.faults

SIGNALS = ("SIGKILL", "SIGTERM")
AT_LEAST = 200


@pytest.fixture
def databases(server: EmbeddedPostgres, small_template: str) -> Iterator[list[str]]:
    """One for each signal: the two enumerations go on side by side."""
    with ExitStack() as stack:
        yield [stack.enter_context(contextmanager(own_database)(server, small_template)) for _ in SIGNALS]


def test_a_run_survives_each_signal_at_every_point(databases: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever line it falls on: nothing is lost, nothing is sent twice, and every log has its end."""
    with ExitStack() as stack:
        enumerations = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "scenario_pipeline_tests.faults.enumeration", name],
                    cwd=PROJECT,
                    env=os.environ | {"OWNERS_URL": url},
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for name, url in zip(SIGNALS, databases, strict=True)
        ]
        printed = [enumeration.communicate()[0] for enumeration in enumerations]
    told = "".join(printed)
    assert [enumeration.returncode for enumeration in enumerations] == [0] * len(SIGNALS), told
    points = {name: int(number) for name, number in re.findall(r"^(\w+): (\d+) points$", told, flags=re.M)}
    with capsys.disabled():
        # The output of CI shows how many there were.
        sys.stdout.write(f"\n{told}")
    assert points.keys() == set(SIGNALS)
    assert min(points.values()) >= AT_LEAST, told
