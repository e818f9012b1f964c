"""Fails if a locked release has a published advisory: `.venv/bin/python .ci/audit.py [LOCK ...]`.

The tool is pip-audit. It asks PyPI about each release, or OSV. Behind a mirror of the index neither may answer; then
this file says so and stands in for OSV, with what such a place has: the project's page on the index, which tells the
advisories of the newest release, and `.ci/advisories.txt`, a dated list of the others.

Who answers is found out by asking about releases that are known to be vulnerable. So an audit that could not find
anything is never taken for one that found nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

PROJECT = Path(__file__).resolve().parent.parent
DATED_LIST = PROJECT / ".ci" / "advisories.txt"

# Findings that the project lives with, each with its reason: why it cannot be reached here, and what would end it.
ACCEPTED: dict[str, str] = {}

# Jinja2 has newer releases, pycrypto never will: so both kinds of answer are tried.
KNOWN_VULNERABLE = {"jinja2": "2.4.1", "pycrypto": "2.6.1"}

PIN = re.compile(r"^([a-z0-9.-]+)(?:\[[^]]*])?==([^ ]+)(?: ; [^\\]*)? \\\n((?: +--hash=\S+(?: \\)?\n)+)", re.M)


def pip_audit(requirements: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pip-audit over the text of a requirements file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "requirements.txt")
        path.write_text(requirements, encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(path), "--disable-pip", "--strict"]
        return subprocess.run(
            [*command, "--progress-spinner=off", "--desc=off", *options], capture_output=True, text=True, check=False
        )


def why_not(service: Sequence[str]) -> str | None:
    """Say why this service cannot be relied on; None if it knows the releases that are known to be vulnerable."""
    asked = "".join(f"{name}=={version}\n" for name, version in KNOWN_VULNERABLE.items())
    ran = pip_audit(asked, "--no-deps", "--format=json", *service)
    try:
        found = {dependency["name"] for dependency in json.loads(ran.stdout)["dependencies"] if dependency["vulns"]}
    except ValueError:
        return ran.stderr.strip().rpartition("\n")[2]
    missing = KNOWN_VULNERABLE.keys() - found
    return f"it reports nothing about {', '.join(sorted(missing))}" if missing else None


def pins(locks: Sequence[Path]) -> dict[str, str]:
    """Each release with its line for pip-audit, without markers: what Windows alone installs is audited as well."""
    lines: dict[str, str] = {}
    for lock in locks:
        text = lock.read_text(encoding="utf-8")
        found = {f"{name}=={version}": f"{name}=={version} \\\n{hashes}" for name, version, hashes in PIN.findall(text)}
        if len(found) != len(re.findall(r"^[^\s#]", text, re.M)):
            sys.exit(f"audit: {lock} has a requirement that is not a name, one version and its hashes")
        lines |= found
    return lines


@cache
def page(name: str) -> dict[str, Any] | None:
    """The project's page on the index, which knows the advisories of the newest release only."""
    try:
        with urllib.request.urlopen(f"https://pypi.org/pypi/{name}/json", timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
    except (OSError, ValueError):
        return None
    return answer if "vulnerabilities" in answer else None


def osv(name: str, advisory: str, aliases: Sequence[str], fixed: Sequence[str], **more: str | None) -> dict[str, Any]:
    """One advisory as OSV words it, with the fields that pip-audit reads."""
    events = [{"introduced": "0"}, *({"fixed": version} for version in fixed)]
    affected = {"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    return {"id": advisory, "aliases": list(aliases), "affected": [affected], **more}


class StandIn:
    """Answers as OSV does, and remembers which releases it could compare with the dated list only."""

    def __init__(self) -> None:
        text = DATED_LIST.read_text(encoding="utf-8")
        self.lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
        self.date = text.partition("# As of: ")[2].split()[0]
        self.dated_only: list[str] = []

    def advisories(self, name: str, version: str) -> list[dict[str, Any]] | None:
        """Every advisory known about a release; None if nothing at all is known about its project."""
        found = {}
        listed = [line[1:] for line in self.lines if line[0] == name]
        for affected, *ids in listed:
            if ids and SpecifierSet(affected).contains(version, prereleases=True):
                found[ids[0]] = osv(name, ids[0], ids[1:], re.findall(r"<([^=,]+)", affected))
        project = page(name)
        if project and Version(project["info"]["version"]) == Version(version):
            for entry in project["vulnerabilities"]:
                more = {"withdrawn": entry.get("withdrawn"), "summary": entry.get("summary")}
                found[entry["id"]] = osv(name, entry["id"], entry["aliases"], entry["fixed_in"], **more)
        elif listed:
            self.dated_only.append(f"{name} {version}")
        else:
            return None
        return list(found.values())

    def serve(self) -> ThreadingHTTPServer:
        """Listen on loopback, on a port of the system's choice."""
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                name, version = asked["package"]["name"], asked["version"]
                answer = stand_in.advisories(name, version)
                if answer is None:
                    print(f"audit: {name} {version} is not its project's newest release and not in {DATED_LIST.name}")
                body = json.dumps({"vulns": answer}).encode()
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
                """Say nothing about a request that was answered."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


def report(answered_by: str, requirements: dict[str, str], service: Sequence[str]) -> int:
    """Audit, print what was found, and return the exit status."""
    ignored = [f"--ignore-vuln={advisory}" for advisory in ACCEPTED]
    ran = pip_audit("".join(requirements.values()), *ignored, *service)
    print(ran.stdout + ran.stderr, end="")
    for advisory, reason in ACCEPTED.items():
        print(f"audit: {advisory} is accepted: {reason}")
    verdict = "no known vulnerability" if ran.returncode == 0 else "FAILED"
    print(f"audit: {len(requirements)} locked releases, answers by {answered_by}: {verdict}")
    return ran.returncode


def main(arguments: Sequence[str]) -> int:
    """Audit with the first service that can be relied on."""
    locks = [Path(argument) for argument in arguments] or sorted((PROJECT / "requirements").glob("*.lock"))
    requirements = pins(locks)
    for title, service in (("PyPI", ["--vulnerability-service=pypi"]), ("OSV", ["--vulnerability-service=osv"])):
        reason = why_not(service)
        if reason is None:
            return report(title, requirements, service)
        print(f"audit: {title} DOES NOT ANSWER for single releases: {reason}")

    stand_in = StandIn()
    pages = page("pycrypto")
    if not (pages and pages["vulnerabilities"]):
        print("audit: NO ADVISORIES ON THE INDEX'S PAGES either: every release is compared with the dated list only")
    server = stand_in.serve()
    service = ["--vulnerability-service=osv", f"--osv-url=http://127.0.0.1:{server.server_port}/"]
    reason = why_not(service)
    if reason is not None:
        print(f"audit: FAILED, for the stand-in cannot be relied on: {reason}")
        return 1
    stand_in.dated_only.clear()
    status = report("the index's pages of newest releases and by the dated list", requirements, service)
    older = sorted(stand_in.dated_only)
    which = "all" if len(older) == len(requirements) else ", ".join(older) or "none"
    print(f"audit: compared with the list of {stand_in.date} ONLY: {which}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
