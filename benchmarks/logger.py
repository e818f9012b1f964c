"""The cost of one `mentor_evaluation_error` through the logger, compared with bare encoding and writing.

    python benchmarks/logger.py [--events 100000]

Both take turns event by event and write to /dev/null. The limit is 1 ms an event, and the goal is a median of 50 us.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import uuid

from scenario_pipeline.errors import ErrorType
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import LineSink
from scenario_pipeline.log.vocabulary import MentorEvaluationError

MESSAGES = {
    "from a SQLSTATE": "SQLSTATE 22012 division_by_zero, table scenario_notifications",
    "of a foreign service": (
        "upstream engine answered HTTP 503 Service Unavailable for mentor 7f1d8a52-93b1-4c0e-9b0a-5b1f5f3f9e77 "
        "(kari.nordmann@example.no) after 30000 ms at https://user:secret@10.0.12.7:5432/rest/v1/mentors?token=abc123def"
    ),
}


def measure(label: str, message: str, events: int) -> None:
    """Take turns over `events` entries, and print one line."""
    sink = LineSink(os.open(os.devnull, os.O_WRONLY))
    context = {
        "invocation_id": str(uuid.uuid4()),
        "dagster_run_id": str(uuid.uuid4()),
        "dagster_job_name": "scenario_scheduler",
        "dagster_step_key": "evaluate_mentor[page_00001]",
        "dagster_partition_key": "2026-08-01",
    }
    logger = StructuredLogger(sink, context=context)
    through, bare = [], []
    for _ in range(events):
        event = MentorEvaluationError(str(uuid.uuid4()), ErrorType.EVALUATION_LOGIC, message)
        started = time.perf_counter_ns()
        logger.emit(event)
        between = time.perf_counter_ns()
        os.write(sink.fd, json.dumps({**context, "event": event.name, **event.fields()}).encode() + b"\n")
        ended = time.perf_counter_ns()
        through.append(between - started)
        bare.append(ended - between)
    through.sort()
    print(
        f"{events:,} errors with a message {label}: median {statistics.median(through) / 1000:.1f} us, "
        f"p99 {through[int(events * 0.99)] / 1000:.1f} us, logger/bare median "
        f"{statistics.median(through) / statistics.median(bare):.1f}, dropped {sink.dropped}"
    )


def main() -> None:
    """Parse the options and measure each kind of message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    options = parser.parse_args()
    for label, message in MESSAGES.items():
        measure(label, message, options.events)


if __name__ == "__main__":
    main()
