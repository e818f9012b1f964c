"""`scenario-pipeline engine` as a process: its address, its token, signals and ports."""

from __future__ import annotations

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.cli.serve import listening
from scenario_pipeline.engines.api import HEALTH_PATH
from scenario_pipeline.engines.service.server import check_may_start
from scenario_pipeline.errors import UserError
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import quiet_mentors
from scenario_pipeline_tests.support.service import TOKEN, a_request, post, the_command
from scenario_pipeline_tests.support.waiting import wait_until, wait_until_blocked


@pytest.mark.parametrize(
    ("host", "token", "allow_anonymous", "may"),
    [
        ("0.0.0.0", "t", False, True),
        ("127.0.0.1", None, True, True),
        ("localhost", None, True, True),
        ("::1", None, True, True),
        ("127.0.0.1", None, False, False),
        ("0.0.0.0", None, True, False),
        ("engine.example", None, True, False),
    ],
)
def test_without_a_token_it_serves_this_machine_only_and_only_if_asked(
    host: str, token: str | None, allow_anonymous: bool, may: bool
) -> None:
    """An engine that anyone on the network can call sends messages in the organisation's name."""
    if may:
        check_may_start(host, token, allow_anonymous=allow_anonymous)
    else:
        with pytest.raises(UserError, match="SCENARIO_ENGINE_TOKEN"):
            check_may_start(host, token, allow_anonymous=allow_anonymous)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish_what_it_has_in_hand(number: signal.Signals, database_url: str, engine: Engine) -> None:
    """A deployment must not cost anyone an answer: the run would count a mentor as failed who was notified."""
    ids = quiet_mentors(engine, 3)
    with the_command(SCENARIO_DATABASE_URL=database_url, SCENARIO_ENGINE_TOKEN=TOKEN) as process:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        url = f"http://127.0.0.1:{started['port']}"
        with engine.begin() as connection, ThreadPoolExecutor(1) as pool:
            connection.execute(text("LOCK TABLE scenario.scenario_notifications IN ACCESS EXCLUSIVE MODE"))
            reply = pool.submit(post, url, a_request(ids))
            wait_until_blocked(engine, 1)
            process.send_signal(number)
            wait_until(lambda: not is_listening(started["port"]), "the port is closed")
            connection.rollback()
            assert reply.result().status_code == 200
        out, err = process.communicate(timeout=30)
    entries = [json.loads(line) for line in out.splitlines()]
    assert [entry["event"] for entry in entries] == ["trigger_engine_answered", "trigger_engine_stopped"]
    assert (process.returncode, "Traceback" in err) == (0, False)
    assert len(sent(engine)) == 3


def test_a_signal_right_after_the_url_ends_it_in_good_order(database_url: str) -> None:
    """A supervisor that starts and stops quickly must not read -15 as a crash; who is told the URL calls at once."""
    with the_command(SCENARIO_DATABASE_URL=database_url, SCENARIO_ENGINE_TOKEN=TOKEN) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert is_listening(int(said.rpartition(":")[2]))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    entries = [json.loads(line) for line in out.splitlines()]
    assert [entry["event"] for entry in entries] == ["trigger_engine_started", "trigger_engine_stopped"]
    assert (process.returncode, err) == (0, "")


def test_an_address_of_version_6_is_shown_as_a_url_writes_it(database_url: str) -> None:
    """`http://::1:8642` is a URL that no client takes."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with the_command("--host", "::1", SCENARIO_DATABASE_URL=database_url, SCENARIO_ENGINE_TOKEN=TOKEN) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"{url}{HEALTH_PATH}", trust_env=False).status_code == 200


@pytest.mark.parametrize("host", ["a..b", f"{'x' * 64}.example"])
def test_a_host_that_is_no_name_is_one_sentence(host: str, database_url: str) -> None:
    """A stack trace is no help to a person who mistyped it."""
    with the_command("--host", host, SCENARIO_DATABASE_URL=database_url, SCENARIO_ENGINE_TOKEN=TOKEN) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err == f"Error: The engine cannot listen at {host}, port 0: the name of a host could not be resolved.\n"
    with pytest.raises(UserError, match="cannot listen"):
        listening(host, 0, "The web server")


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_a_busy_port_is_one_sentence(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with the_command("--port", port, SCENARIO_DATABASE_URL=database_url, SCENARIO_ENGINE_TOKEN=TOKEN) as process:
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err.startswith(f"Error: The engine cannot listen at 127.0.0.1, port {port}: ")
    assert err.count("\n") == 1
