"""stdout fails under a run: closed, full, without a reader, or with one that stalls. Only the log may suffer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from scenario_pipeline_tests.faults import small_world
from scenario_pipeline_tests.faults.endings import lost
from scenario_pipeline_tests.faults.installation import FaultyInstallation, Run
from scenario_pipeline_tests.support.people import DAY, D, Mentor, insert_mentors, mentor_id

pytestmark = pytest.mark.faults


@contextmanager
def without_a_reader() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def judge_by_the_captured_log(installation: FaultyInstallation, run: Run, entries: int) -> None:
    """Hold the log that Dagster captured against every promise, and what the command said against what was lost."""
    evidence = run.end(log_lost=True)
    assert run.stderr.splitlines()[-1] == lost(entries)
    installation.judge(replace(evidence, log=installation.captured_log()))


def test_a_run_without_a_stdout_sends_everything(installation: FaultyInstallation) -> None:
    """A service manager closed it: the mentors hear all the same."""
    with installation.running(shell='"$@" >&-') as run:
        judge_by_the_captured_log(installation, run, 3)


def test_a_run_whose_reader_is_gone_sends_everything(installation: FaultyInstallation) -> None:
    """Somebody piped the log into `head`."""
    with without_a_reader() as writer, installation.running(stdout=writer) as run:
        judge_by_the_captured_log(installation, run, 3)


def test_a_run_whose_log_meets_a_full_disk_sends_everything(installation: FaultyInstallation) -> None:
    """The disk of the log and that of the database are two."""
    with Path("/dev/full").open("wb") as full, installation.running(stdout=full) as run:
        judge_by_the_captured_log(installation, run, 3)


def test_a_run_whose_reader_stalls_for_ever_sends_everything(installation: FaultyInstallation) -> None:
    """A paused viewer must not hold the run, and its lost entries are counted; Dagster has captured them all."""
    with installation.engine.begin() as connection:
        poisoned = insert_mentors(connection, [Mentor(n, activities=[D - 32 * DAY]) for n in range(100, 400)])
        connection.execute(
            text(f"""
            CREATE OR REPLACE FUNCTION scenario.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.user_id = '{mentor_id(small_world.POISON)}' OR NEW.user_id >= '{poisoned[0]}' THEN
                    RAISE EXCEPTION 'no message';
                END IF;
                RETURN NEW;
            END $$""")
        )
    installation.page_size = 1000
    reader, writer = os.pipe()
    try:
        with installation.running(stdout=writer) as run:
            os.close(writer)
            evidence = run.end(log_lost=True)
        seen = os.read(reader, 1 << 20)
    finally:
        os.close(reader)
    captured = installation.captured_log()
    assert (len(captured.splitlines()), captured.startswith(seen), len(seen) > 50_000) == (303, True, True)
    assert run.stderr.splitlines()[-1] == lost(303 - len(seen.splitlines()))
    installation.judge(replace(evidence, log=captured))
