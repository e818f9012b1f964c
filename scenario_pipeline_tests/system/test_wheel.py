"""The built package, used where no checkout is in sight: what it holds, and that its commands work from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest

from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.support.stranger import stranger_accepts
from scenario_pipeline_tests.system.conftest import Api, free_port, wait_until

pytestmark = pytest.mark.system

ORDINARY_USER = "nobody"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own belong to the user who runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="scenario-wheel-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def built(place: Path) -> Path:
    """The folder with the sdist and with the wheel that was built from it, as `python -m build` does by itself."""
    folder = place / "dist"
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(PROJECT)], check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [wheel] = built.glob("*.whl")
    return wheel


def as_user(name: str | None) -> dict[str, object]:
    """Arguments of `subprocess` for a command of another user; None is the user who runs the tests."""
    return {} if name is None else {"user": name, "group": "nogroup", "extra_groups": []}


def python_for_everybody() -> str:
    """An interpreter that the ordinary user may run as well: a Python of root's own lies in root's home."""
    own = str(Path(sys.base_prefix) / "bin" / "python3")
    if os.geteuid() != 0:
        return own
    for candidate in (own, "/usr/local/bin/python3", "/usr/bin/python3"):
        command = [candidate, "-c", "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))"]
        try:
            if subprocess.run(command, **as_user(ORDINARY_USER), cwd="/", check=False).returncode == 0:  # type: ignore[call-overload]
                return candidate
        except OSError:  # not there; not for this user
            continue
    pytest.fail(f"the user {ORDINARY_USER} can run no Python from 3.11 to 3.13: install Debian's python3")


@pytest.fixture(scope="module")
def commands(place: Path, wheel: Path) -> Path:
    """The folder of the commands in an environment that holds the locked dependencies and the wheel."""
    environment = place / "venv"
    # Debian keeps pip out of its venv; the one at hand can install for another interpreter.
    subprocess.run([python_for_everybody(), "-m", "venv", "--without-pip", str(environment)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet"]
    lock = PROJECT / "requirements" / "runtime.lock"
    subprocess.run([*pip, "--require-hashes", "-r", str(lock)], check=True)
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    return environment / "bin"


class Installation:
    """The installed commands, for one user with an empty home, in an empty folder, with no variable set."""

    def __init__(self, commands: Path, folder: Path, user: str | None) -> None:
        self.user, self.program = as_user(user), str(commands / "scenario-pipeline")
        self.home, self.empty = folder / "home", folder / "empty"
        for path in (self.home, self.empty):
            path.mkdir(parents=True)
            if user is not None:
                shutil.chown(path, user)
        self.environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin"}
        self.first_log = self.command("run", "--demo")

    def command(self, *arguments: str, statuses: tuple[int, ...] = (0,)) -> str:
        """Run a command, which ends with one of these statuses, and return its stdout."""
        done = subprocess.run(
            [self.program, *arguments],
            **self.user,  # type: ignore[call-overload]
            cwd=self.empty,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode in statuses, done.stdout + done.stderr
        return str(done.stdout)

    def up(self, port: int, output: Path) -> subprocess.Popen[bytes]:
        """Start the web server and the daemon."""
        with output.open("wb") as file:
            return subprocess.Popen(  # type: ignore[no-any-return]
                [self.program, "up", "--port", str(port)],
                **self.user,  # type: ignore[call-overload]
                cwd=self.empty,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )


@pytest.fixture(
    scope="module",
    params=[
        # The user, and the mode of the folder that holds the home.
        pytest.param((None, 0o755), id="as the user who runs the tests"),
        pytest.param(
            (ORDINARY_USER, 0o755),
            id="as an ordinary user",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="the tests are run by an ordinary user already"),
        ),
    ],
)
def installation(request: pytest.FixtureRequest, place: Path, commands: Path) -> Iterator[Installation]:
    user, mode = request.param
    folder = Path(tempfile.mkdtemp(dir=place))
    folder.chmod(mode)
    installation = Installation(commands, folder, user)
    yield installation
    installation.command("db", "stop")


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    """A migration or a lexicon that stays behind is missed by the first user, far from any checkout."""
    package = PROJECT / "scenario_pipeline"
    here = {str(path.relative_to(PROJECT)) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == here
    assert {PurePosixPath(name).name for name in names if not name.endswith(".py")} == {
        "dagster.yaml",
        "lexicon.txt",
        "py.typed",
        "roles.sql",
        "script.py.mako",
        "workspace.yaml",
    }


def test_the_metadata_say_the_licence_and_describe_the_package(wheel: Path) -> None:
    """What an index and a licence scanner show."""
    [info] = (name for name in ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    with ZipFile(wheel) as archive:
        metadata = HeaderParser().parsestr(archive.read(info).decode())
        assert (
            archive.read(str(PurePosixPath(info).parent / "licenses" / "LICENSE")) == (PROJECT / "LICENSE").read_bytes()
        )
    assert (metadata["License-Expression"], metadata.get_all("License-File")) == ("Apache-2.0", ["LICENSE"])
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (PROJECT / "PACKAGE.md").read_text(encoding="utf-8").strip()  # type: ignore[union-attr]


def test_the_sdist_holds_what_a_build_needs(built: Path) -> None:
    """And neither tests nor anybody's database."""
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {PurePosixPath(name).parts[1] for name in archive.getnames() if "/" in name}
    assert names == {
        "CHANGELOG.md",
        "LICENSE",
        "PACKAGE.md",
        "PKG-INFO",
        "dagster.yaml",
        "pyproject.toml",
        "scenario_pipeline",
        "workspace.yaml",
    }


def test_the_first_command_works_in_an_empty_folder(installation: Installation, commands: Path) -> None:
    """A user has no checkout, and throws a virtual environment away without a thought."""
    stranger_accepts(installation.first_log)
    assert [path.name for path in installation.home.rglob("scenario-pipeline")] == ["scenario-pipeline"]
    data = installation.home / ".local" / "share" / "scenario-pipeline"
    assert {path.name for path in data.iterdir()} == {"dagster", "postgres"}
    assert list(installation.empty.iterdir()) == []
    assert list(commands.parent.rglob(".scenario")) == []


def test_doctor_finds_nothing(installation: Installation) -> None:
    # An ordinary user cannot look at the web server that the other tests have running as root: status 2, "unknown".
    statuses = (0,) if installation.user == as_user(None) else (0, 2)
    lines = [line for line in installation.command("doctor", statuses=statuses).splitlines() if line[:1] != " "]
    findings = dict(line.split(":")[0].split()[::-1] for line in lines)
    of_the_machine = {} if statuses == (0,) else {"web_server": findings.pop("web_server")}
    assert len(findings) > 10
    assert {name: status for name, status in findings.items() if status != "ok"} == {}
    assert of_the_machine in ({}, {"web_server": "ok"}, {"web_server": "unknown"})


def test_the_web_ui_shows_the_run(installation: Installation, place: Path) -> None:
    """Its two configuration files have to come out of the package."""
    port = free_port()
    api = Api(f"http://127.0.0.1:{port}")
    output = place / f"up-{port}.out"
    services = installation.up(port, output)
    try:
        wait_until(lambda: "Dagster is served" in output.read_text(encoding="utf-8"), "the web server answers", 120)
        answer = api.graphql(
            """{ workspaceOrError { ... on Workspace { locationEntries { name
                    locationOrLoadError { __typename } } } }
                runsOrError { ... on Runs { results { status pipelineName
                    repositoryOrigin { repositoryLocationName } } } } }"""
        )
    finally:
        services.send_signal(2)
        assert services.wait(60) == 0
    assert answer["workspaceOrError"]["locationEntries"] == [
        {"name": "scenario_pipeline", "locationOrLoadError": {"__typename": "RepositoryLocation"}}
    ]
    assert answer["runsOrError"]["results"] == [
        {
            "status": "SUCCESS",
            "pipelineName": "scenario_scheduler",
            "repositoryOrigin": {"repositoryLocationName": "scenario_pipeline"},
        }
    ]
