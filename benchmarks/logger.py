"""What one `mentor_evaluation_error` costs through the logger, beside the same line through bare structlog.

    python benchmarks/logger.py [--events 100000] [--search-seconds 60] [--seed 1]

Both take turns event by event and write to /dev/null. The limit is 1 ms an event whatever the message, the goal a
median of 35 us for a message of a SQLSTATE. The worst message is searched for, by climbing from one text to a slower
one; the same seed tries the same first texts, but the clock steers, so no two searches are alike.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
import uuid

import structlog

from scenario_pipeline import sanitiser
from scenario_pipeline.errors import ErrorInfo, ErrorType
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import LineSink
from scenario_pipeline.log.vocabulary import MentorEvaluationError

OF_A_SQLSTATE = "SQLSTATE 22012 division_by_zero, table scenario_notifications"
OF_A_SERVICE = (
    "upstream engine answered HTTP 503 Service Unavailable for mentor 7f1d8a52-93b1-4c0e-9b0a-5b1f5f3f9e77 "
    "(kari.nordmann@example.no) after 30000 ms at https://user:secret@10.0.12.7:5432/rest/v1/mentors?token=abc123def"
)
# What any rule looks for or writes; the search joins these to texts.
WRITTEN = r"""
    Kari page Mark error a e1 x9 s ms 1 12 1234 123456 912 7f1d8a52 93b1 23505 SQLSTATE KeyError é http
    [ ] [word] [number] [cut] : :: , ; = =( ( ) " ' % %1 %40 %25 %2541 \ \u0040 \' &#64; @ / // :// . - _ +
    token pwd auth password sid user name is passw DETAIL line Traceback psycopg. [SQL: -----BEGIN -----END
    MarkGrant aA Ab 0a NO12 1-1 a-a a_b x.y ~ | # < > ! ? * ^ { }
"""
PIECES = [*WRITTEN.split(), *(" " * 4), *"\n\t\x85\u0301\u200b\u0669\uff20\ufdfa\ud800", "  "]
CONTEXT = {
    "invocation_id": str(uuid.uuid4()),
    "dagster_run_id": str(uuid.uuid4()),
    "dagster_job_name": "scenario_scheduler",
    "dagster_step_key": "evaluate_mentor[page_00001]",
    "dagster_partition_key": "2026-08-01",
}


def main() -> None:
    """Parse the options, measure each kind of message, search for the worst and measure that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--search-seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    measure(
        "of our own about a SQLSTATE",
        ErrorInfo(ErrorType.EVALUATION_LOGIC, OF_A_SQLSTATE).error_message,
        options.events,
    )
    measure("of a SQLSTATE, sanitised", OF_A_SQLSTATE, options.events)
    measure("of a foreign service, sanitised", OF_A_SERVICE, options.events)
    worst, tried = search(options.seed, options.search_seconds)
    print(f"{tried:,} texts tried in {options.search_seconds:g} s (seed {options.seed}); the worst is {worst!r}")
    measure("that is the worst found", worst, min(options.events, 2000))


def measure(label: str, message: str, events: int) -> None:
    """Take turns over `events` entries, and print one line."""
    sink = LineSink(os.open(os.devnull, os.O_WRONLY))
    logger = StructuredLogger(sink, context=CONTEXT)
    plain = structlog.wrap_logger(
        structlog.BytesLogger(os.fdopen(os.open(os.devnull, os.O_WRONLY), "wb", buffering=0)),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=_encoded),
        ],
        wrapper_class=structlog.BoundLogger,
    ).bind(**CONTEXT)
    through, bare = [], []
    for _ in range(events):
        event = MentorEvaluationError(str(uuid.uuid4()), ErrorType.EVALUATION_LOGIC, message)
        sanitiser.forget()
        started = time.perf_counter_ns()
        logger.emit(event)
        between = time.perf_counter_ns()
        plain.warning(event.name, **event.fields())
        ended = time.perf_counter_ns()
        through.append(between - started)
        bare.append(ended - between)
    print(f"{events:,} errors with a message {label}: {_summary(through)}; bare structlog: {_summary(bare)}")


def _encoded(entry: object, **_options: object) -> bytes:
    return json.dumps(entry).encode()


def _summary(nanoseconds: list[int]) -> str:
    ordered = sorted(nanoseconds)
    return (
        f"median {statistics.median(ordered) / 1000:.1f} us, p99 {ordered[int(len(ordered) * 0.99)] / 1000:.1f} us, "
        f"worst {ordered[-1] / 1000:.0f} us"
    )


def search(seed: int, seconds: float) -> tuple[str, int]:
    """Climb from text to slower text until the time is over; return the slowest and how many were tried."""
    chance = random.Random(seed)
    ends = time.monotonic() + seconds
    population = sorted(
        (_cost(text), text) for text in {(piece + " ") * 600 for piece in PIECES} | {p * 600 for p in PIECES}
    )
    tried = len(population)
    while time.monotonic() < ends:
        population = population[-12:]
        for _ in range(40):
            text = _changed(chance, chance.choice(population)[1], chance.choice(population)[1])
            cost = _cost(text)
            tried += 1
            if cost > population[0][0] and all(text != other for _, other in population):
                population.append((cost, text))
        # A text that was slow by accident is measured anew.
        population = sorted((min(cost, _cost(text)), text) for cost, text in population)
    return population[-1][1], tried


def _changed(chance: random.Random, text: str, other: str) -> str:
    at, length = chance.randrange(513), chance.choice((0, 1, 2, 4, 16, 64))
    match chance.randrange(4):
        case 0:
            new = "".join(chance.choices(PIECES, k=chance.randrange(1, 6)))
        case 1:
            new = "".join(chance.choices(PIECES, k=chance.randrange(1, 5))) * chance.randrange(2, 100)
        case 2:
            new = other[at : at + 100]
        case _:
            start = chance.randrange(500)
            new = text[start : start + 20] * chance.randrange(1, 30)
    return (text[:at] + new + text[at + (length if chance.random() < 0.5 else len(new)) :])[:520]


def _cost(text: str) -> int:
    """Return the nanoseconds of processor time that this thread needs for `text`, the least of three."""
    costs = []
    for _ in range(3):
        sanitiser.forget()
        started = time.thread_time_ns()
        sanitiser.sanitise(text)
        costs.append(time.thread_time_ns() - started)
    return min(costs)


if __name__ == "__main__":
    main()
