"""What is installed is what was locked, and under which licences is written down."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from scenario_pipeline_tests.support.project import PROJECT

LOCKS = [PROJECT / "requirements" / f"{name}.lock" for name in ("runtime", "test", "lint")]


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
    assert len(locked) > 20
    pinned = r"[a-z0-9.-]+(\[[a-z,]+\])?==[0-9][\w.]*( ; [^#]+?)?( +--hash=sha256:[0-9a-f]{64})+ *"
    assert [line for line in locked if not re.fullmatch(pinned, line)] == []


def test_the_locks_agree_on_every_version_they_share() -> None:
    """CI installs the three on top of each other: the last one must not exchange what the tests ran with."""
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for line in requirements(lock):
            versions.setdefault(name_of(line), set()).add(line.partition("==")[2].split()[0])
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_a_package_whose_hash_is_not_the_locked_one_is_not_installed(tmp_path: Path) -> None:
    """A release that was exchanged on its way would run here, with the database's password at hand."""
    wheel = tmp_path / "parcel-1.0-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        archive.writestr("parcel.py", "")
        archive.writestr("parcel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n")
        archive.writestr("parcel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("parcel-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    flipped = ("1" if digest[0] == "0" else "0") + digest[1:]
    # Neither the settings nor the indexes of the machine: what pip does by itself.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}

    def install(digest: str, target: Path) -> subprocess.CompletedProcess[str]:
        lock = tmp_path / "parcel.lock"
        lock.write_text(f"parcel==1.0 \\\n    --hash=sha256:{digest}\n")
        options = ["--quiet", "--no-index", "--find-links", str(tmp_path), "--require-hashes", "--target", str(target)]
        return subprocess.run(
            [sys.executable, "-m", "pip", "install", *options, "-r", str(lock)],
            env=environment | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    assert install(digest, tmp_path / "installed").returncode == 0
    assert (tmp_path / "installed" / "parcel.py").exists()
    refused = install(flipped, tmp_path / "refused")
    assert refused.returncode != 0
    assert flipped in refused.stderr
    assert not (tmp_path / "refused").exists()


def test_the_licences_page_lists_every_locked_name() -> None:
    """Whoever may not use a licence looks there, and would take a missing package for an absent one."""
    page = (PROJECT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\S+) \| [0-9]\S* \| .+ \| [a-zCI, ]+ \| .*\|$", page, flags=re.M)
    assert listed == sorted({name_of(line) for lock in LOCKS for line in requirements(lock)})
