"""Where the project's files are.

Belongs here: paths and the text of pages that tests read. Does not belong here: anything that starts a process.
"""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
DATA = PROJECT / "scenario_pipeline_tests" / "data"
COMMUNITY = DATA / "community"
