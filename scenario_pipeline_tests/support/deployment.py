"""The guides' blocks, and an installation made by them.

Belongs here: finding a block on a page, and putting a test's own places in the place of the page's. Does not belong
here: what a block must bring about.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.postgres_tools import binaries
from scenario_pipeline.storage.roles import OWNER, ROLES_FILE, SCHEDULER
from scenario_pipeline_tests.support.project import PROJECT

DOCS = PROJECT / "docs"
# What is looked for in logs, between signs that a URL must encode.
PASSWORD_CORE = "kanari-of-the-guide"
PASSWORD = f"a+b c%d@/{PASSWORD_CORE}:#?"
ENCODED = quote(PASSWORD, safe="")


def page(where: str) -> str:
    """Return a page of the docs, or with `name#Title` one section of it: `how-to/install`, `reference/doctor`."""
    name, _, title = where.partition("#")
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    if not title:
        return text
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
    assert found, f"docs/{name}.md has no section {title}"
    return found[1]


def blocks(where: str, language: str) -> list[str]:
    """Return the blocks of a page or section in a language, those inside a list included."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", page(where), flags=re.M | re.S)
    return [textwrap.dedent(block) for _, block in found]


def sql(where: str, role: str) -> list[str]:
    """Return the blocks of a page or section that say `-- as` this role."""
    found = [block for block in blocks(where, "sql") if re.match(rf"-- as {role}\b", block)]
    assert found, f"{where} has nothing for {role}"
    return found


def statements(block: str) -> list[str]:
    """Take a block apart: a database cannot be created together with anything else."""
    return [part for part in re.split(r";(?:\n|\Z)", block) if re.sub(r"--.*", "", part).strip()]


def execute(url: str, block: str) -> list[Any]:
    """Run a block, a statement at a time; return the rows of the last one."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements(block):
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@dataclass
class Deployment:
    """An installation as the guides make one: a server, two files of variables, and folders in place of the page's.

    Attributes:
        port: of the server.
        folder: holds `etc`, `home` and `log`, and is the home of whoever runs a shell block.
        scenario: name of the scheduler's database.
        dagster: name of Dagster's.
    """

    port: str
    folder: Path
    scenario: str = "scenario"
    dagster: str = "dagster"

    def url(self, role: str, name: str | None = None) -> str:
        """Return the URL of a database for a role."""
        return f"postgresql://{role}:{ENCODED}@127.0.0.1:{self.port}/{name or self.scenario}"

    def here(self, text: str) -> str:
        """Put the test's places in the place of the page's."""
        programs = f"{Path(sys.executable).parent}/"
        places = {
            # The test's user does what the page's two users do.
            "runuser -u scenario -- ": "",
            "/opt/scenario-pipeline/.venv/bin/": programs,
            ".venv/bin/": programs,
            "/opt/scenario-pipeline": str(PROJECT),
            "/etc/scenario": str(self.folder / "etc"),
            "/var/lib/scenario": str(self.folder / "home"),
            "/var/log/scenario": str(self.folder / "log"),
            "db.example.org/scenario": f"127.0.0.1:{self.port}/{self.scenario}",
            "db.example.org/dagster": f"127.0.0.1:{self.port}/{self.dagster}",
            "?sslmode=verify-full": "",
        }
        # In one pass: what is put in may hold what is looked for.
        return re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text)

    def shell(self, block: str, *, status: int = 0) -> tuple[str, str]:
        """Run a shell block with nothing set but what it sets itself; return stdout and stderr."""
        inherited = {name: os.environ[name] for name in ("LANG", "PYTHONPATH") if name in os.environ}
        # pg_dump and pg_restore of the server's own version.
        path = os.pathsep.join([str(binaries()), os.environ["PATH"]])
        done = subprocess.run(
            ["sh", "-euc", self.here(block)],
            env=inherited | {"PATH": path, "HOME": str(self.folder)},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == status, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout, done.stderr

    def command(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Run a command of the project as the scheduler; return stdout and stderr."""
        words = " ".join(arguments)
        block = f"cd /opt/scenario-pipeline; set -a; . /etc/scenario/scheduler.env; .venv/bin/scenario-pipeline {words}"
        return self.shell(block, status=status)

    def variables(self) -> Mapping[str, str]:
        """Return what the scheduler's file sets."""
        lines = (self.folder / "etc" / "scheduler.env").read_text(encoding="utf-8").splitlines()
        return dict(re.findall(r"^(\w+)='(.*)'$", "\n".join(lines), flags=re.M))

    def write_files(self) -> None:
        """Write the two files of variables, and the passwords that psql and pg_dump look up."""
        variables = next(b for b in blocks("how-to/install", "sh") if b.startswith("# /etc/scenario/scheduler.env"))
        scheduler = self.here(variables).replace("PASSWORD", ENCODED)
        for name in ("etc", "log"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "etc" / "scheduler.env").write_text(scheduler, encoding="utf-8")
        owner = scheduler.replace(SCHEDULER, OWNER, 1)
        (self.folder / "etc" / "owner.env").write_text(owner, encoding="utf-8")
        escaped = PASSWORD.replace("\\", r"\\").replace(":", r"\:")
        passwords = self.folder / ".pgpass"
        passwords.write_text(f"127.0.0.1:{self.port}:*:*:{escaped}\n", encoding="utf-8")
        passwords.chmod(0o600)


def deploy(server: EmbeddedPostgres, folder: Path, administrator: str, rights: str) -> Deployment:
    """Follow the guide on an empty server as an administrator with these rights, up to the first run."""
    url = server.url("postgres")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {administrator} LOGIN {rights} PASSWORD '{PASSWORD}'".encode())
    deployment = Deployment(url.rsplit(":", 1)[1].split("/")[0], folder)
    execute(deployment.url(administrator, "postgres"), "CREATE DATABASE scenario")
    make_roles(deployment, administrator)
    [logins] = sql("how-to/install#Roles", "the administrator")
    execute(
        deployment.url(administrator), logins.replace("PASSWORD '", f"PASSWORD '{PASSWORD}").replace("PASSWORD'", "'")
    )
    deployment.write_files()
    return deployment


def make_roles(deployment: Deployment, administrator: str) -> None:
    """Run the file of roles in the database of a deployment, as psql would."""
    [command] = [block for block in blocks("how-to/install#Roles", "sh") if block.startswith("psql")]
    assert f"-f {ROLES_FILE}" in deployment.here(command)
    with psycopg.connect(deployment.url(administrator), autocommit=True) as connection:
        connection.execute(ROLES_FILE.read_bytes())
