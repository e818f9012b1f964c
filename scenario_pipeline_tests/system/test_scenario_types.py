"""The types that authors of scenarios rely on, checked from another package as they would check them.

Belongs here: mypy's view of the documented example. Does not belong here: what the example does
(`test_scenario_authors`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scenario_pipeline_tests.support.packages import packaged

pytestmark = pytest.mark.system


def mypy(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check a folder as strictly as mypy can, with the project found where it is installed."""
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(folder / "cache"), "."],
        cwd=folder,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_documented_example_is_typed_from_end_to_end(tmp_path: Path) -> None:
    """An author who checks types strictly should neither ignore our modules nor our names."""
    packaged(tmp_path)
    done = mypy(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_mistake_in_the_example_is_found_by_its_types(tmp_path: Path) -> None:
    """Types that accept everything would pass the test above as well."""
    packaged(tmp_path)
    module = tmp_path / "acme_scenarios" / "anniversary.py"
    module.write_text(module.read_text(encoding="utf-8").replace("lookback_days=7", 'lookback_days="a week"'))
    test = tmp_path / "test_anniversary.py"
    test.write_text(test.read_text(encoding="utf-8").replace('(730, second, "730")', "(730, second)"))
    done = mypy(tmp_path)
    assert [line.split("  ")[-1] for line in done.stdout.splitlines() if "error:" in line] == ["[arg-type]"] * 2
