"""What pip does with a lock's hashes when it installs the project.

Belongs here: pip as a process. Does not belong here: what stands in the locks (`unit/test_dependencies`).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile


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
