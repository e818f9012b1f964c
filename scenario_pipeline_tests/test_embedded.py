"""The embedded Postgres against real servers: killed, raced, moved and refused, and never lost.

Belongs here: everything that may happen to the server of one folder. Does not belong here: what is stored in it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from scenario_pipeline.errors import UserError
from scenario_pipeline.settings import PROJECT_FOLDER
from scenario_pipeline.storage import embedded
from scenario_pipeline.storage.embedded import EmbeddedPostgres

CANARY = "kari.nordmann@example.org"
linux = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")

# What a second process does; it says so on stdout and stays if asked to, so that it can be killed.
STARTER = """
import sys
from pathlib import Path
from scenario_pipeline.storage.embedded import EmbeddedPostgres

print(EmbeddedPostgres(Path(sys.argv[1])).start(), flush=True)
if "stay" in sys.argv:
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was once started, to copy: `initdb` is the slowest part of these tests."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("template") / "postgres")
    try:
        server.start()
    finally:
        server.stop()
    return folder_of(server)


@pytest.fixture
def stopped(postgres: EmbeddedPostgres, template: Path) -> EmbeddedPostgres:
    """A server of this test's own that ran before."""
    shutil.copytree(template, folder_of(postgres))
    return postgres


@pytest.fixture
def running(stopped: EmbeddedPostgres) -> EmbeddedPostgres:
    """A started server of this test's own."""
    assert stopped.start()
    return stopped


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that was never started, and its folder; whatever runs there at the end is stopped."""
    server = EmbeddedPostgres(tmp_path / "postgres")
    try:
        yield server
    finally:
        with contextlib.suppress(UserError):
            server.stop()
        for pid in processes_in(folder_of(server)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def folder_of(server: EmbeddedPostgres) -> Path:
    return server._folder


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"waited {seconds} s in vain: {what}"
        time.sleep(0.005)


def starter(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder), *arguments],
        cwd=PROJECT_FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_in(folder: Path) -> set[int]:
    """The server's processes: all of them, and no others, work in the data folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() in (folder / "data", folder / "data.new"):
                found.add(int(process.name))
    return found


def tools_in(folder: Path) -> set[int]:
    """`initdb` and `pg_ctl`, which work in the folder itself."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.add(int(process.name))
    return found


def postmasters_in(folder: Path) -> set[int]:
    everyone, found = processes_in(folder), set()
    for pid in everyone:
        with contextlib.suppress(OSError):
            if int(Path(f"/proc/{pid}/stat").read_text().split()[3]) not in everyone:
                found.add(pid)
    return found


def postmaster_of(folder: Path) -> int:
    return int((folder / "data/postmaster.pid").read_text().splitlines()[0])


def execute(server: EmbeddedPostgres, *statements: str) -> list[tuple[object, ...]]:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def test_a_restart_keeps_the_data(postgres: EmbeddedPostgres) -> None:
    """Otherwise everybody's notifications would be sent again after each restart."""
    assert (postgres.is_running(), postgres.stop()) == (False, False)
    assert (postgres.start(), postgres.start(), postgres.is_running()) == (True, False, True)
    execute(postgres, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")

    assert (postgres.stop(), postgres.stop(), postgres.is_running()) == (True, False, False)
    assert postgres.start()

    assert execute(postgres, "SELECT n FROM kept") == [(7,)]


def test_the_server_is_set_up_as_promised(running: EmbeddedPostgres) -> None:
    """A time zone or an encoding of the machine would move dates and break names."""
    names = ("server_encoding", "lc_collate", "data_checksums", "fsync", "jit", "max_connections", "TimeZone")
    columns = ", ".join(f"current_setting('{name}')" for name in names if name != "lc_collate")
    assert execute(running, f"SELECT {columns}") == [("UTF8", "on", "on", "off", "200", "UTC")]
    assert execute(running, "SELECT DISTINCT datcollate, datctype, datlocprovider FROM pg_database") == [
        ("C", "C", "c")
    ]


def test_a_second_process_finds_the_same_server_and_does_not_stop_it(stopped: EmbeddedPostgres) -> None:
    """Web server, daemon and runs share one database; the first to end must not take it from the others."""
    with starter(folder_of(stopped)) as first:
        assert first.communicate()[0] == "True\n"
    url = stopped.url("postgres")

    with starter(folder_of(stopped)) as second:
        assert second.communicate()[0] == "False\n"

    assert (stopped.start(), stopped.url("postgres")) == (False, url)


@linux
def test_eight_processes_that_start_at_once_leave_one_server(postgres: EmbeddedPostgres) -> None:
    """Two postmasters on one data folder destroy it."""
    with contextlib.ExitStack() as stack:
        starters = [stack.enter_context(starter(folder_of(postgres))) for _ in range(8)]
        answers = [process.communicate()[0] for process in starters]

    assert sorted(answers) == ["False\n"] * 7 + ["True\n"]
    assert len(postmasters_in(folder_of(postgres))) == 1
    assert execute(postgres, "SELECT 1") == [(1,)]


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_the_server_survives_whoever_started_it(stopped: EmbeddedPostgres, number: signal.Signals) -> None:
    """Ctrl-C, a closed terminal or a killed run must not cut off the other processes."""
    with starter(folder_of(stopped), "stay") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        os.killpg(process.pid, number)

    assert execute(stopped, "SELECT 1") == [(1,)]
    assert stopped.stop()
    wait_until(lambda: not processes_in(folder_of(stopped)), "no process is left behind")


@linux
@pytest.mark.parametrize("moment", ["lock", "data.new", "data", "data/postmaster.pid"])
def test_a_starter_killed_at_any_moment_leaves_a_usable_folder(postgres: EmbeddedPostgres, moment: str) -> None:
    """A newcomer who closes the terminal during the first start must be able to start again."""
    folder = folder_of(postgres)
    with starter(folder, "stay") as process:
        wait_until((folder / moment).exists, moment)
        process.kill()

    postgres.start()

    assert execute(postgres, "SELECT 1") == [(1,)]
    assert {path.name for path in folder.iterdir()} == {"data", "password", "lock", "log"}
    # An orphaned `pg_ctl` may still learn that it came second.
    wait_until(lambda: len(postmasters_in(folder)) == 1, "one server")
    assert postgres.stop()
    wait_until(lambda: not processes_in(folder), "no process is left behind")


@linux
def test_a_starter_waits_for_an_orphaned_initdb_instead_of_racing_it(postgres: EmbeddedPostgres) -> None:
    """Two initdb in one folder would mix their files."""
    folder = folder_of(postgres)
    with starter(folder, "stay") as process:
        wait_until((folder / "data.new/base").exists, "initdb at work")
        process.kill()
        process.wait()
        orphans = tools_in(folder)

    with starter(folder) as second:
        assert second.communicate()[0] == "True\n"

    assert orphans, "initdb ended before its starter was killed"
    assert tools_in(folder) == set()


@linux
def test_a_killed_server_comes_back_with_what_was_committed(running: EmbeddedPostgres) -> None:
    """Out of memory kills servers; a notification that was recorded must stay recorded."""
    execute(running, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    for pid in processes_in(folder_of(running)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not running.is_running()

    assert running.start()

    assert execute(running, "SELECT n FROM kept") == [(7,)]


@linux
def test_a_killed_postmaster_whose_backend_still_works_is_replaced_safely(running: EmbeddedPostgres) -> None:
    """A backend that outlives the postmaster by seconds must not write beside the new server."""
    folder = folder_of(running)
    with psycopg.connect(running.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        os.kill(postmaster_of(folder), signal.SIGKILL)

        assert running.start()

    assert len(postmasters_in(folder)) == 1
    assert execute(running, "SELECT count(*) FROM kept") == [(1000,)]


def test_a_stale_pid_file_is_neither_believed_nor_signalled(running: EmbeddedPostgres) -> None:
    """After a restart of a container the file may name a stranger's process and a stranger's port."""
    pid_file = folder_of(running) / "data/postmaster.pid"
    lines = pid_file.read_text().splitlines()
    running.stop()
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger,
        socket.create_server((embedded.HOST, 0)) as deaf,
    ):
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:3], str(deaf.getsockname()[1]), *lines[4:], ""]))
        deaf.close()

        assert (running.is_running(), running.stop()) == (False, False)
        with pytest.raises(UserError, match="does not run"):
            running.url("postgres")
        assert stranger.poll() is None
        stranger.communicate(b"\n")
    assert running.start()


def test_another_server_that_trusts_everybody_is_not_taken_for_ours(running: EmbeddedPostgres, tmp_path: Path) -> None:
    """Our data would land in a stranger's database, and our password in its hands."""
    pid_file = folder_of(running) / "data/postmaster.pid"
    stale = pid_file.read_text().splitlines()
    running.stop()
    other = EmbeddedPostgres(tmp_path / "other")
    try:
        other.start()
        url = other.url("postgres")
        (folder_of(other) / "data/pg_hba.conf").write_text("host all all 127.0.0.1/32 trust\n")
        execute(other, "SELECT pg_reload_conf()")
        wait_until(lambda: not other.is_running(), "the other server trusts everybody")
        with psycopg.connect(url, password="wrong", autocommit=True) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
            stale[3] = str(connection.info.port)
        pid_file.write_text("\n".join([*stale, ""]))

        assert not running.is_running()
        assert running.start()
        assert running.is_running()
    finally:
        for pid in postmasters_in(folder_of(other)):
            os.kill(pid, signal.SIGQUIT)
        wait_until(lambda: not processes_in(folder_of(other)), "the other server ends")


def test_a_copy_of_a_running_folder_is_a_database_of_its_own(running: EmbeddedPostgres, tmp_path: Path) -> None:
    """Stopping the copy would stop the original, and both would write into one database."""
    execute(running, "CHECKPOINT")
    shutil.copytree(folder_of(running), tmp_path / "copy")
    copy = EmbeddedPostgres(tmp_path / "copy")

    assert (copy.is_running(), copy.stop()) == (False, False)
    assert running.is_running()


def test_a_moved_folder_still_works(running: EmbeddedPostgres, tmp_path: Path) -> None:
    """People rename their project folders."""
    execute(running, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    running.stop()
    moved = EmbeddedPostgres(folder_of(running).rename(tmp_path / "moved"))
    try:
        assert moved.start()
        assert execute(moved, "SELECT n FROM kept") == [(7,)]
    finally:
        assert moved.stop()


@pytest.mark.parametrize("name", ["Mine prosjekter/ærlig hånd", "$HOME `id` \"quoted\" 'too'"])
def test_the_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    """`Application Support` and a Norwegian user name are ordinary; a shell must not expand the rest."""
    server = EmbeddedPostgres(tmp_path / name / "postgres")
    try:
        assert server.start()
        assert execute(server, "SELECT 1") == [(1,)]
    finally:
        assert server.stop()


def test_nobody_gets_in_without_the_password(running: EmbeddedPostgres) -> None:
    """Every user of the machine can reach a loopback port."""
    url = running.url("postgres")
    password = (folder_of(running) / "password").read_text()
    assert password in url

    for wrong in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url.replace(password, wrong), connect_timeout=5)
    rules = execute(running, "SELECT DISTINCT auth_method FROM pg_hba_file_rules")
    assert rules == [("scram-sha-256",)]


def test_the_server_listens_on_loopback_only(running: EmbeddedPostgres) -> None:
    """The data of people must not be offered to the network."""
    shown = execute(
        running,
        "SELECT current_setting('listen_addresses'), current_setting('unix_socket_directories'), "
        "inet_server_addr()::text",
    )

    assert shown == [("127.0.0.1", "", "127.0.0.1/32")]
    # Line 5 of the pid file is the first socket folder, line 6 the first address it listens on.
    assert (folder_of(running) / "data/postmaster.pid").read_text().splitlines()[4:6] == ["", "127.0.0.1"]


@linux
def test_the_password_is_in_its_file_only(postgres: EmbeddedPostgres) -> None:
    """A command line and an environment can be read by others, a log is sent to others."""
    seen: set[bytes] = set()

    def look_at_processes() -> None:
        for process in Path("/proc").glob("[0-9]*"):
            for kind in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    seen.add((process / kind).read_bytes())

    with starter(folder_of(postgres)) as process:
        while process.poll() is None:
            look_at_processes()
        process.communicate()
    look_at_processes()
    file = folder_of(postgres) / "password"
    password = file.read_bytes()

    assert any(b"initdb" in line for line in seen), "never saw initdb at work"
    assert len(password) >= 32
    assert not [line for line in seen if password in line]
    assert password not in (folder_of(postgres) / "log").read_bytes()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (file, folder_of(postgres) / "log")} == {0o600}
    assert stat.S_IMODE(folder_of(postgres).stat().st_mode) == 0o700


@linux
def test_the_log_of_the_server_holds_no_values(running: EmbeddedPostgres) -> None:
    """The log is what people send when they ask for help."""
    execute(running, "CREATE TABLE people (email text PRIMARY KEY CHECK (email <> ''), born date)")
    insert = f"INSERT INTO people VALUES ('{CANARY}')"
    execute(running, insert)
    for failing in (
        insert,
        f"INSERT INTO people VALUES ('{CANARY}', '{CANARY}')",
        f"SELECT 1 / 0, '{CANARY}'",
        f"SELEKT '{CANARY}'",
        f"DO $$ BEGIN RAISE WARNING '{CANARY}'; RAISE EXCEPTION '{CANARY}'; END $$",
    ):
        with pytest.raises(psycopg.Error) as caught:
            execute(running, failing)
        assert caught.value.sqlstate is not None
    # The server's own report of a crash quotes what the killed backend was doing.
    log = folder_of(running) / "log"
    before = len(log.read_text())
    with contextlib.closing(psycopg.connect(running.url("postgres"))) as doomed:
        doomed.execute(f"SELECT '{CANARY}'".encode())
        os.kill(doomed.info.backend_pid, signal.SIGKILL)
    wait_until(lambda: "ready to accept connections" in log.read_text()[before:], "the server recovers")

    assert "terminated by signal 9" in log.read_text()
    assert CANARY not in log.read_text()


def test_a_parent_that_reads_our_output_sees_its_end_while_the_server_runs(stopped: EmbeddedPostgres) -> None:
    """`scenario-pipeline run | tee log` would hang for ever if the server held the pipe."""
    finished = subprocess.run(
        [sys.executable, "-c", STARTER, str(folder_of(stopped))],
        cwd=PROJECT_FOLDER,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"True\n", b"")
    assert stopped.is_running()


@linux
def test_the_server_does_not_hold_the_lock(running: EmbeddedPostgres) -> None:
    """A lock that lives as long as the server would block every later start and stop."""
    held = set()
    for link in Path(f"/proc/{postmaster_of(folder_of(running))}/fd").iterdir():
        with contextlib.suppress(OSError):
            held.add(link.readlink())

    assert folder_of(running) / "log" in held
    assert folder_of(running) / "lock" not in held


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Be a user whom permissions bind: root, whom they do not, becomes `nobody` for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["postgres", "new/home/postgres"])
def test_an_unwritable_folder_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    """A stack trace would hide from a newcomer that only a folder has to be changed."""
    tmp_path.chmod(0o500)
    server = EmbeddedPostgres(tmp_path / name)

    with ordinary_user(), pytest.raises(UserError) as caught:
        server.start()

    assert caught.value.exit_status == 1
    assert str(tmp_path / name) in str(caught.value)
    assert "SCENARIO_HOME" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@as_root
def test_a_folder_of_another_user_ends_in_one_sentence(running: EmbeddedPostgres) -> None:
    """Whoever once used sudo meets this on the next day."""
    with ordinary_user():
        for call in (running.start, running.stop, running.is_running, lambda: running.url("postgres")):
            with pytest.raises(UserError, match="another user") as caught:
                call()
            assert caught.value.exit_status == 1

    assert running.is_running()


def test_a_file_in_the_place_of_the_folder_ends_in_one_sentence(tmp_path: Path) -> None:
    """The same, for a mistyped SCENARIO_HOME."""
    (tmp_path / "postgres").write_text("not a folder")

    with pytest.raises(UserError, match="SCENARIO_HOME") as caught:
        EmbeddedPostgres(tmp_path / "postgres").start()

    assert caught.value.exit_status == 1


def test_a_full_disk_leaves_no_half_made_database(postgres: EmbeddedPostgres) -> None:
    """Half a database would be taken for a whole one after space was made."""
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from scenario_pipeline.errors import UserError\n"
        f"try:{STARTER.replace(chr(10), chr(10) + ' ')}\n"
        "except UserError as exc: print(exc.exit_status, exc)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", limited, str(folder_of(postgres))],
        cwd=PROJECT_FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert finished.stdout.startswith(f"1 The embedded database in {folder_of(postgres)} could not be created: ")
    assert finished.stderr == ""
    assert {path.name for path in folder_of(postgres).iterdir()} <= {"lock", "password"}
    assert postgres.start()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "data/PG_VERSION").write_text("16\n"), "made by Postgres 16"),
        (lambda folder: (folder / "data/PG_VERSION").unlink(), "not a database"),
        (lambda folder: (folder / "password").unlink(), "lost the file `password`"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(
    running: EmbeddedPostgres, damage: Callable[[Path], object], sentence: str
) -> None:
    """Creating the database anew over somebody's data would be the worst answer."""
    running.stop()
    damage(folder_of(running))
    before = sorted(folder_of(running).rglob("*"))

    with pytest.raises(UserError, match=sentence) as caught:
        running.start()

    assert caught.value.exit_status == 1
    assert sorted(folder_of(running).rglob("*")) == before


def test_a_missing_wheel_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without a wheel the way out is a server of one's own."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})

    with pytest.raises(UserError, match="SCENARIO_DATABASE_URL") as caught:
        EmbeddedPostgres(tmp_path / "postgres").start()

    assert caught.value.exit_status == 1
    assert not (tmp_path / "postgres/data").exists()


def modes(path: Path) -> list[tuple[Path, int, int]]:
    return [(step, step.stat().st_mode, step.stat().st_uid) for step in path.parents]


@as_root
@linux
def test_root_may_keep_the_folder_where_nobody_else_can_enter(tmp_path: Path) -> None:
    """A fresh clone in root's home must work, and must not open that home to others."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "home" / "postgres")
    (closed / "home").mkdir()
    before = modes(folder_of(server))
    try:
        assert server.start()
        assert execute(server, "SELECT 1") == [(1,)]
        postmaster = postmaster_of(folder_of(server))
        assert Path(f"/proc/{postmaster}").stat().st_uid != 0
        assert modes(folder_of(server)) == before
    finally:
        assert server.stop()


@as_root
@linux
def test_root_gives_the_server_no_capability_where_none_is_needed() -> None:
    """A server that may read every file of the machine is for the closed folder only."""
    # Not below pytest's own folder, which it keeps closed.
    open_folder = Path(tempfile.mkdtemp())
    open_folder.chmod(0o755)
    server = EmbeddedPostgres(open_folder / "postgres")
    try:
        assert server.start()
        status = Path(f"/proc/{postmaster_of(folder_of(server))}/status").read_text().split("\n")
        granted = [line.split()[1] for line in status if line.startswith("CapEff")]
        reachable = embedded._is_reachable((open_folder, embedded._binaries() / "postgres"), 65534, 65534)
        assert (set(granted[0]) == {"0"}) is reachable
    finally:
        server.stop()
        shutil.rmtree(open_folder)


@as_root
def test_root_works_in_the_folder_of_an_ordinary_user_as_that_user(tmp_path: Path) -> None:
    """One `sudo` must not take the database away from its owner."""
    folder = tmp_path / "postgres"
    folder.mkdir(mode=0o700)
    owner = pwd.getpwnam("daemon").pw_uid
    os.chown(folder, owner, owner)
    server = EmbeddedPostgres(folder)
    try:
        server.start()
        assert {path.stat().st_uid for path in folder.rglob("*")} == {owner}
    finally:
        assert server.stop()


@as_root
def test_without_setpriv_root_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minimal containers have no setpriv; the sentence names the two ways out."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(UserError, match="ordinary user or set SCENARIO_DATABASE_URL") as caught:
        EmbeddedPostgres(tmp_path / "postgres").start()

    assert caught.value.exit_status == 1
