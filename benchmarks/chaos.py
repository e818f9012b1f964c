"""How many runs complete, and whether anything is lost or doubled, while Postgres is restarted at random.

    python benchmarks/chaos.py [--minutes 5] [--mentors 20000] [--seed 1]

A server of its own, in a temporary folder, is stopped at once every 5 to 40 seconds and is away for up to 2 more; in
between, backends of the runs are ended. Meanwhile two processes run over the same successive dates. Every ten dates
all logs, the ledger and the notifications are held against what undisturbed runs send. Exit status 1 if a promise is
broken.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from scenario_pipeline_tests.faults.chaos import Plan, chaos

COMPLETED_AT_LEAST = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="how long faults are made")
    parser.add_argument("--mentors", type=int, default=20_000, help="how many to load")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        findings = chaos(Path(folder), Plan(60 * options.minutes, options.mentors, seed=options.seed))
    print(findings.summary())
    for complaint in findings.complaints:
        print(complaint)
    sys.exit(1 if findings.complaints or findings.completed < COMPLETED_AT_LEAST else 0)


if __name__ == "__main__":
    main()
