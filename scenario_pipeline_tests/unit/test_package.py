"""What makes the project a package: where it keeps data, and what it carries of the files at the top level."""

from __future__ import annotations

import pwd
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from scenario_pipeline import settings
from scenario_pipeline.defs import local_run
from scenario_pipeline.defs.instance import home
from scenario_pipeline.defs.instance.home import prepare_dagster_home
from scenario_pipeline.failures import UserError
from scenario_pipeline.settings import PROJECT_NAME, Settings, default_home, is_checkout

PROJECT = Path(__file__).resolve().parent.parent.parent
CARRIED = PROJECT / "scenario_pipeline" / "defs" / "instance"
OURS = f'[project]\nname = "{PROJECT_NAME}"\n'


def test_a_checkout_keeps_its_data_in_its_own_folder(tmp_path: Path) -> None:
    """Two clones on one machine must not share a database."""
    (tmp_path / "pyproject.toml").write_text(OURS)
    assert default_home(tmp_path, "/srv/data") == tmp_path / ".scenario"
    assert Settings.from_environment({"XDG_DATA_HOME": "/srv/data"}).home == PROJECT / ".scenario"


@pytest.mark.parametrize(
    "pyproject", [None, '[project]\nname = "another"\n', 'project = "scenario-pipeline"\n', "not TOML", "\x00"]
)
def test_an_installed_package_keeps_its_data_with_the_user(tmp_path: Path, pyproject: str | None) -> None:
    """Data inside `site-packages` is lost with the virtual environment, and with it who was notified of what."""
    if pyproject is not None:  # some wheels leave theirs in site-packages
        (tmp_path / "pyproject.toml").write_text(pyproject)
    assert default_home(tmp_path, "/srv/data") == Path("/srv/data/scenario-pipeline")


@pytest.mark.parametrize("data_home", [None, "data", "~/data"])
def test_the_users_data_folder_is_the_usual_one_unless_a_whole_path_is_named(
    tmp_path: Path, data_home: str | None
) -> None:
    """A relative path would mean another database in each folder that a command is run in."""
    assert default_home(tmp_path, data_home) == Path("~/.local/share/scenario-pipeline")


def test_a_user_without_a_home_folder_is_asked_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user often has neither HOME nor an entry in passwd, and never set what is complained of."""

    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(settings, "PROJECT_FOLDER", tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.raises(UserError, match=r"^No home folder is known for this user: set SCENARIO_HOME\.$"):
        Settings.from_environment({})
    with pytest.raises(UserError, match=r"^SCENARIO_HOME must be the path of a folder\.$"):
        Settings.from_environment({"SCENARIO_HOME": "~/data"})
    assert Settings.from_environment({"SCENARIO_HOME": str(tmp_path)}).home == tmp_path


def test_the_project_knows_its_own_checkout() -> None:
    assert is_checkout(PROJECT)
    assert tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"] == PROJECT_NAME


def test_every_python_that_is_promised_is_tried() -> None:
    """A classifier that no test stands behind is a guess."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    promised = re.findall(r":: Python :: (3\.\d+)$", "\n".join(project["classifiers"]), flags=re.M)
    assert promised == ["3.11", "3.12", "3.13"]
    assert project["requires-python"] == ">=3.11,<3.14"
    for job in ("tests", "wheel"):
        assert workflow["jobs"][job]["strategy"]["matrix"]["python-version"] == promised


def test_no_tracked_file_is_ignored() -> None:
    """A change to such a file shows up in no `git status`, and a copy of the folder lacks it."""
    if not (PROJECT / ".git").exists():
        pytest.skip("this copy of the project is no git checkout, so nothing is tracked")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout.splitlines() == []


@pytest.mark.parametrize("name", ["dagster.yaml", "workspace.yaml"])
def test_the_package_carries_the_files_of_the_top_level(name: str) -> None:
    """Dagster reads them there in a checkout; where only the package is installed, it reads the copies."""
    remedy = f"cp {name} {CARRIED.relative_to(PROJECT)}"
    assert (CARRIED / name).read_bytes() == (PROJECT / name).read_bytes(), remedy


def test_the_workspace_names_the_code_location_that_the_command_line_records() -> None:
    """The web UI would show runs of the command line without their job."""
    [entry] = yaml.safe_load((PROJECT / "workspace.yaml").read_text(encoding="utf-8"))["load_from"]
    assert entry == {
        "python_module": {"module_name": local_run.DEFINITIONS_MODULE, "location_name": local_run.LOCATION_NAME}
    }


def test_an_installed_package_prepares_dagsters_home_from_its_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them the web UI does not start, and runs of the command line are recorded nowhere."""
    monkeypatch.setattr(home, "PROJECT_FOLDER", tmp_path)
    prepared = prepare_dagster_home(Settings.from_environment({"SCENARIO_HOME": str(tmp_path / "home")}))
    assert {path.name: path.read_bytes() for path in prepared.iterdir()} == {
        name: (PROJECT / name).read_bytes() for name in ("dagster.yaml", "workspace.yaml")
    }


def test_the_operators_own_dagster_yaml_comes_first(tmp_path: Path) -> None:
    """Run launchers are set up there, and an installed package is no place to edit."""
    configured = Settings.from_environment({"SCENARIO_HOME": str(tmp_path)})
    prepare_dagster_home(configured)
    (tmp_path / "dagster.yaml").write_text("run_launcher: {}\n")
    assert (prepare_dagster_home(configured) / "dagster.yaml").read_text() == "run_launcher: {}\n"
