"""Why a connection failed: each reason has its own sentence and its own advice, in whatever language it was said."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import create_server

import psycopg
import pytest
import trustme
from psycopg.conninfo import make_conninfo

from scenario_pipeline.defs.instance.examination import examine_instance
from scenario_pipeline.doctor.database import examine_database
from scenario_pipeline.errors import ErrorInfo
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.refusals import Reason
from scenario_pipeline_tests.support.scripted_servers import error_response, refusing

PASSWORD = "s3cret-of-kari"
# The canary stands wherever a server quotes a name.
SAID = {
    Reason.WRONG_PASSWORD: ("28P01", "Passwort-Authentifizierung für Benutzer »kari« fehlgeschlagen", "auth_failed"),
    Reason.NO_SUCH_DATABASE: ("3D000", "Datenbank »kari« existiert nicht", "InitPostgres"),
    Reason.NO_SUCH_ROLE: ("28000", "Rolle »kari« existiert nicht", "InitializeSessionUserId"),
    Reason.NOT_ADMITTED: ("28000", "kein pg_hba.conf-Eintrag für Host, Benutzer »kari«", "ClientAuthentication"),
    Reason.OTHER_USER: ("28000", "Peer-Authentifizierung für Benutzer »kari« fehlgeschlagen", "auth_failed"),
    Reason.NO_CONNECT_RIGHT: ("42501", "keine Berechtigung für Datenbank »kari«", "CheckMyDatabase"),
    Reason.NO_CONNECTIONS_ALLOWED: ("55000", "Datenbank »kari« akzeptiert keine Verbindungen", "CheckMyDatabase"),
    Reason.TOO_MANY: ("53300", "tut mir leid, schon zu viele Verbindungen", "InitProcess"),
    Reason.NOT_READY: ("57P03", "das Datenbanksystem startet", "ProcessStartupPacket"),
    Reason.OPTION_REFUSED: ("42704", "unbekannter Konfigurationsparameter »kari«", "find_option"),
    Reason.UNKNOWN: ("XX000", 'timeout expired, connection refused "kari"', "some_routine"),
}
SAID_BY_A_POOLER = [
    (Reason.POOLER_REFUSES_OPTIONS, "08P01", "unsupported startup parameter: options"),
    (Reason.POOLER_REFUSES_OPTIONS, "08P01", "unsupported startup parameter in options: jit"),
    (Reason.POOLER_DOES_NOT_KNOW, "XX000", "Tenant or user not found"),
    (Reason.POOLER_DOES_NOT_KNOW, "08P01", 'no such database: "kari"'),
    (Reason.NO_SUCH_DATABASE, "3D000", 'database "kari" is not known here'),
    (Reason.WRONG_PASSWORD, "08P01", "auth failed"),
    (Reason.WRONG_PASSWORD, "28P01", "password authentication failed"),
    (Reason.TLS_REQUIRED, "08P01", "SSL required"),
    (Reason.TOO_MANY, "08P01", "no more connections allowed (max_client_conn)"),
    (Reason.TOO_MANY, "53300", "sorry, all of them are taken"),
    (Reason.NOT_READY, "08P01", "pgbouncer cannot connect to server: server login has been failing"),
    (Reason.UNKNOWN, "08P01", "something that a pooler says of kari"),
]


def reason_of(url: str) -> str:
    """Connect as the pipeline does; return what it says."""
    engine = database.connect(url)
    try:
        unusable = database.why_unusable(engine, "SCENARIO_DATABASE_URL")
    finally:
        engine.dispose()
    assert unusable is not None
    shown = f"{unusable.sentence} {unusable.remedy}"
    assert not any(secret in shown for secret in (PASSWORD, "kari", "»"))
    return unusable.sentence


def sentence(reason: Reason, state: str = "") -> str:
    code = f" with SQLSTATE {state}" if reason is Reason.UNKNOWN and state else ""
    return f"The database of SCENARIO_DATABASE_URL cannot be used: {reason.sentence}{code}."


def url_of(port: int, query: str = "") -> str:
    return f"postgresql://kari:{PASSWORD}@127.0.0.1:{port}/kari?connect_timeout=5{query}"


@pytest.mark.parametrize("reason", SAID)
@pytest.mark.parametrize("severity", ["FATAL", "ВАЖНО", "致命错误"])
def test_what_a_server_says_is_known_in_every_language(reason: Reason, severity: str) -> None:
    """lc_messages is the server's: its text cannot be what tells a wrong password from a missing database."""
    state, text, routine = SAID[reason]
    with refusing(lambda: error_response(state, text, routine=routine, severity=severity)) as port:
        assert reason_of(url_of(port)) == sentence(reason, state)


@pytest.mark.parametrize(("reason", "state", "text"), SAID_BY_A_POOLER)
def test_what_a_pooler_says_is_known_by_its_words(reason: Reason, state: str, text: str) -> None:
    """Poolers give many things one code, and a pooler that refuses options has a setting for it."""
    with refusing(lambda: error_response(state, text)) as port:
        assert reason_of(url_of(port)) == sentence(reason, state)


def test_who_does_not_ask_for_tls_is_said_to_need_it() -> None:
    """The most frequent pg_hba.conf of a host admits with TLS only."""
    state, text, routine = SAID[Reason.NOT_ADMITTED]
    with refusing(lambda: error_response(state, text, routine=routine)) as port:
        assert reason_of(url_of(port, "&sslmode=disable")) == sentence(Reason.TLS_REQUIRED)


def _a_free_port() -> int:
    with create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("reason", "query"),
    [
        (Reason.REFUSED, ""),
        (Reason.NO_SUCH_HOST, "&host=nowhere.invalid"),
        (Reason.NO_SUCH_HOST, f"&host={'a' * 70}.example"),
        (Reason.NO_SUCH_HOST, "&host=a..b"),
        (Reason.NO_SOCKET, "&host=/nowhere"),
        (Reason.NO_SERVICE, "&service=nowhere"),
        (Reason.BAD_VALUE, "&sslmode=nonsense"),
        (Reason.BAD_VALUE, "&connect_timeout=soon"),
        (Reason.BAD_VALUE, "&host=a,b,c&port=1,2"),
        (Reason.BAD_VALUE, "&target_session_attrs=nonsense"),
    ],
)
def test_what_libpq_cannot_do_by_itself_has_its_own_sentence(reason: Reason, query: str) -> None:
    """Nobody was asked yet: it is the string, or the network."""
    assert reason_of(url_of(_a_free_port(), query)) == sentence(reason)


def test_silence_a_hang_up_and_another_service_are_told_apart() -> None:
    """A firewall, a load balancer without a server behind it, and a port that is somebody else's."""
    with create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://kari:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/kari?connect_timeout=2"
        assert reason_of(url) == sentence(Reason.TIMEOUT)
    with refusing(lambda: b"") as port:
        assert reason_of(url_of(port)) == sentence(Reason.CLOSED)
    with refusing(lambda: b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert reason_of(url_of(port)) == sentence(Reason.NOT_POSTGRES)


@contextmanager
def _with_tls(tmp_path: Path, host: str) -> Iterator[tuple[int, Path, Path]]:
    """Yield a server with a certificate for `host`: its port, its authority's certificate, and another's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority, stranger = trustme.CA(), trustme.CA()
    authority.issue_cert(host).configure_cert(context)
    known, other = tmp_path / "root.crt", tmp_path / "other.crt"
    authority.cert_pem.write_to_path(known)
    stranger.cert_pem.write_to_path(other)
    state, text, routine = SAID[Reason.NO_SUCH_DATABASE]
    with refusing(lambda: error_response(state, text, routine=routine), tls=context) as port:
        yield port, known, other


def test_each_failure_of_tls_has_its_own_sentence(server: EmbeddedPostgres, tmp_path: Path) -> None:
    """They are mended at different ends: the server's settings, a file of this machine, a name in the string."""
    key = tmp_path / "readable.key"
    key.write_text("no key", encoding="utf-8")
    found = {"not offered": reason_of(make_conninfo(server.url("postgres"), sslmode="require"))}
    with _with_tls(tmp_path, "db.example") as (port, known, other):
        for name, query in {
            "no root certificate": f"&sslmode=verify-full&sslrootcert={tmp_path}/nothing",
            "another authority": f"&sslmode=verify-ca&sslrootcert={other}",
            "another host": f"&sslmode=verify-full&sslrootcert={known}",
            "no client's key": f"&sslmode=require&sslcert={known}&sslkey={key}",
            "all is well": f"&sslmode=verify-ca&sslrootcert={known}",
            "and not checked": "&sslmode=require",
        }.items():
            found[name] = reason_of(url_of(port, query))
    with refusing(lambda: b"", tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as port:
        found["no cipher in common"] = reason_of(url_of(port, "&sslmode=require"))
    assert found == {
        "not offered": sentence(Reason.NO_TLS),
        "no root certificate": sentence(Reason.NO_ROOT_CERTIFICATE),
        "another authority": sentence(Reason.UNKNOWN_AUTHORITY),
        "another host": sentence(Reason.OTHER_HOST),
        "no client's key": sentence(Reason.CLIENT_CERTIFICATE),
        "all is well": sentence(Reason.NO_SUCH_DATABASE),
        "and not checked": sentence(Reason.NO_SUCH_DATABASE),
        "no cipher in common": sentence(Reason.TLS_FAILED),
    }


def _own(server: EmbeddedPostgres, **parameters: str) -> str:
    return make_conninfo(server.url("postgres"), connect_timeout=5, **parameters)


REAL: dict[str, tuple[Reason, Callable[[EmbeddedPostgres], str]]] = {
    "wrong password": (Reason.WRONG_PASSWORD, lambda s: _own(s, password="wrong")),
    "wrong password at a name with two addresses": (
        Reason.WRONG_PASSWORD,
        lambda s: _own(s, host="localhost", password="wrong"),
    ),
    "no such role": (Reason.WRONG_PASSWORD, lambda s: _own(s, user="nobody")),
    "no such database": (Reason.NO_SUCH_DATABASE, lambda s: _own(s, dbname="nothing")),
    "a database whose name is another reason": (Reason.NO_SUCH_DATABASE, lambda s: _own(s, dbname="timeout expired")),
    "no password": (Reason.NO_PASSWORD, lambda s: _own(s, password="", passfile="/nowhere")),
    "no login": (Reason.NO_SUCH_ROLE, lambda s: _own(s, user="locked_out", password="x")),
    "no connection left": (Reason.TOO_MANY, lambda s: _own(s, user="crowded_out", password="x")),
    "closed": (Reason.NO_CONNECTIONS_ALLOWED, lambda s: _own(s, dbname="closed")),
    "no right": (Reason.NO_CONNECT_RIGHT, lambda s: _own(s, dbname="private", user="welcome", password="x")),
    "no such option": (Reason.OPTION_REFUSED, lambda s: _own(s, options="-c nonsense=1")),
    "no value of an option": (Reason.OPTION_REFUSED, lambda s: _own(s, options="-c work_mem=much")),
    "an option for others": (
        Reason.OPTION_REFUSED,
        lambda s: _own(s, options="-c log_min_messages=panic", user="welcome", password="x"),
    ),
    "another method": (Reason.NO_COMMON_METHOD, lambda s: _own(s, require_auth="md5")),
    "no standby": (Reason.NO_SUCH_SESSION, lambda s: _own(s, target_session_attrs="standby")),
    "the second of two hosts": (
        Reason.WRONG_PASSWORD,
        lambda s: _own(s, host="127.0.0.1,127.0.0.1", port=f"1,{_port(s)}", password="wrong"),
    ),
}


def _port(server: EmbeddedPostgres) -> str:
    return server.url("postgres").rsplit(":", 1)[1].split("/")[0]


@pytest.fixture(scope="module")
def strict(server: EmbeddedPostgres) -> EmbeddedPostgres:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for statement in (
            "CREATE ROLE locked_out PASSWORD 'x'",
            "CREATE ROLE crowded_out LOGIN PASSWORD 'x' CONNECTION LIMIT 0",
            "CREATE ROLE welcome LOGIN PASSWORD 'x'",
            "CREATE DATABASE closed ALLOW_CONNECTIONS false",
            "CREATE DATABASE private",
            "REVOKE CONNECT ON DATABASE private FROM PUBLIC",
        ):
            connection.execute(statement)
    return server


@pytest.mark.parametrize("case", REAL)
def test_a_real_server_refuses_for_a_reason_that_is_named(strict: EmbeddedPostgres, case: str) -> None:
    """The scripted refusals are worth what they have in common with these."""
    reason, url = REAL[case]
    assert reason_of(url(strict)) == sentence(reason)


def test_each_reason_keeps_its_words_and_has_advice_of_its_own() -> None:
    """A sentence with [word] in it, or one piece of advice for everything, is what there was before."""
    for reason in Reason:
        assert ErrorInfo(reason.error_type, reason.sentence).error_message == reason.sentence
        assert "{" not in reason.remedy.format(name="SCENARIO_DATABASE_URL", address="-p 5432")
    assert len({reason.sentence for reason in Reason}) == len(Reason)
    about_reaching = {reason.remedy for reason in Reason if "pg_isready" in reason.remedy}
    others = [reason.remedy for reason in Reason if "pg_isready" not in reason.remedy]
    assert (len(about_reaching), len(set(others))) == (1, len(others))


def test_doctor_says_which_reason_it_is_for_both_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two may stand on different servers, and each has its own variable to correct."""
    with ExitStack() as stack:
        ports = []
        for reason in (Reason.NO_SUCH_DATABASE, Reason.WRONG_PASSWORD):
            state, text, routine = SAID[reason]
            answer = error_response(state, text, routine=routine)
            ports.append(stack.enter_context(refusing(lambda answer=answer: answer)))  # type: ignore[misc]
        monkeypatch.setenv("SCENARIO_HOME", str(tmp_path))
        monkeypatch.setenv("SCENARIO_DATABASE_URL", url_of(ports[0]))
        monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", url_of(ports[1]))
        settings = Settings.from_environment()
        [ours], [dagsters] = examine_database(settings), examine_instance(settings)
    assert (ours.finding, ours.remedy) == (
        sentence(Reason.NO_SUCH_DATABASE),
        "CREATE DATABASE ..., on the server; or correct the database in SCENARIO_DATABASE_URL",
    )
    assert (dagsters.finding, dagsters.remedy) == (
        f"Dagster's database cannot be checked: {Reason.WRONG_PASSWORD.sentence}.",
        "ALTER ROLE ... PASSWORD, on the server; or correct the user and password in SCENARIO_DAGSTER_DATABASE_URL",
    )
