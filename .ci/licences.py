"""Fails if docs/reference/licences.md is not what is locked and installed, or a licence in it is not acceptable.

`.venv/bin/python .ci/licences.py --write` makes its table anew. The licences are those that pip-licenses reads from the
metadata of the installed packages. What no requirement marker allows here (Windows' packages, say) is not installed:
its row was written by hand, from the metadata in its wheel, and stays as it stands in the page.
"""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "docs" / "reference" / "licences.md"
HEADER = "| name | version | licence | used by | only where |\n|---|---|---|---|---|\n"
LOCKS = {"runtime": "running", "test": "tests", "lint": "CI", "docs": "docs"}
PIN = re.compile(r"^([a-z0-9.-]+)(?:\[[^]]*])?==([^ ]+)(?: ; ([^\\]*))? \\$", re.M)


@dataclass
class Pin:
    """A locked release: which locks name it, and under which markers."""

    name: str
    version: str
    used_by: list[str] = field(default_factory=list)
    markers: list[str] = field(default_factory=list)

    @property
    def marker(self) -> str:
        """Where alone it is installed; empty if one lock installs it everywhere."""
        return "" if "" in self.markers else self.markers[0]

    def row(self, licence: str) -> str:
        """Its line of the table."""
        marker = f"`{self.marker}`" if self.marker else ""
        return f"| {self.name} | {self.version} | {licence} | {', '.join(self.used_by)} | {marker} |\n"


def canonical(name: str) -> str:
    """Give the name as locks spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> list[Pin]:
    """Every release of the locks, by name."""
    found: dict[str, Pin] = {}
    for lock, purpose in LOCKS.items():
        text = (PROJECT / "requirements" / f"{lock}.lock").read_text(encoding="utf-8")
        for name, version, marker in PIN.findall(text):
            pin = found.setdefault(name, Pin(name, version))
            pin.used_by.append(purpose)
            pin.markers.append(marker)
    return [found[name] for name in sorted(found)]


def installed() -> dict[tuple[str, str], str]:
    """The licence of each installed release, as pip-licenses words it."""
    command = [sys.executable, "-m", "piplicenses", "--with-system", "--from=mixed", "--format=json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {(canonical(entry["Name"]), entry["Version"]): entry["License"] for entry in listed}


def acceptable(licence: str, accepted: set[str]) -> bool:
    """Of alternatives one must be acceptable; of those that hold together each, or the page names them at once."""
    parts = [re.split(r"; | AND ", alternative) for alternative in licence.split(" OR ")]
    return licence in accepted or any(accepted.issuperset(together) for together in parts)


def main(write: bool) -> int:
    """Compare the page, or write it; return the exit status."""
    page = PAGE.read_text(encoding="utf-8")
    prose, _, table = page.partition(HEADER)
    accepted = set(re.findall(r"`([^`]+)`", prose.partition("## Acceptable\n")[2].partition("\n## ")[0]))
    by_hand = {(row[0], row[1]): row[2] for row in re.findall(r"^\| (\S+) \| (\S+) \| (.+?) \|", table, re.M)}
    here = installed()
    rows, wrong = [], []
    for pin in locked():
        release = pin.name, pin.version
        licence = here.get(release) or (by_hand.get(release) if pin.marker else None)
        if licence is None:
            remedy = f"write its row by hand: {pin.row('...').strip()}" if pin.marker else "install all locks"
            wrong.append(f"{pin.name} {pin.version} is not installed: {remedy}")
        elif not acceptable(licence, accepted):
            wrong.append(f"{pin.name} {pin.version}: its licence {licence!r} is not under Acceptable in {PAGE.name}")
        rows.append(pin.row(licence or "UNKNOWN"))
    expected = prose + HEADER + "".join(rows)
    if write:
        PAGE.write_text(expected, encoding="utf-8")
    elif expected != page:
        wrong.append(f"{PAGE.name} is not what is locked and installed; `.ci/licences.py --write` makes it anew:")
        wrong.extend(difflib.unified_diff(page.splitlines(), expected.splitlines(), lineterm="", n=0))
    for line in wrong:
        print(f"licences: {line}")
    print(f"licences: {len(rows)} locked releases: {'FAILED' if wrong else 'all listed, all acceptable'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
