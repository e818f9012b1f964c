"""What is installed is what was locked, and under which licences is written down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scenario_pipeline_tests.support.project import PROJECT

LOCKS = sorted((PROJECT / "requirements").glob("*.lock"))


def requirements(lock: Path) -> list[str]:
    """The requirements of a lock, each on one line with its hashes."""
    text = re.sub(r"^ *#.*\n", "", lock.read_text(encoding="utf-8"), flags=re.M)
    return text.replace("\\\n", " ").splitlines()


def name_of(requirement: str) -> str:
    return re.split(r"[\[= ]", requirement)[0]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_requirement_is_one_version_with_its_hashes(lock: Path) -> None:
    """Otherwise two people install different code from the same commit, or whatever an index hands out."""
    locked = requirements(lock)
    assert len(locked) > 3
    pinned = r"[a-z0-9.-]+(\[[a-z,]+\])?==[0-9][\w.]*( ; [^#]+?)?( +--hash=sha256:[0-9a-f]{64})+ *"
    assert [line for line in locked if not re.fullmatch(pinned, line)] == []


def test_the_locks_agree_on_every_version_they_share() -> None:
    """CI installs them on top of each other: the last one must not exchange what the tests ran with."""
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for line in requirements(lock):
            versions.setdefault(name_of(line), set()).add(line.partition("==")[2].split()[0])
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_the_licences_page_lists_every_locked_name() -> None:
    """People who may not use a licence look there, and would take a missing package for an absent one."""
    page = (PROJECT / "docs" / "reference" / "licences.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\S+) \| [0-9]\S* \| .+ \| [a-zCI, ]+ \| .*\|$", page, flags=re.M)
    assert listed == sorted({name_of(line) for lock in LOCKS for line in requirements(lock)})
