"""What may stand in a log entry about a failure: nobody's name, number or secret, and still what went wrong.

The corpus pins shapes that were seen to leak elsewhere; the properties insert secrets of each class into messages at
random. Speed is the benchmarks' business, not this module's.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenario_pipeline.sanitiser import MAX_INPUT, sanitise
from scenario_pipeline_tests.support.names import LABELS, LEXICON, NAME_WORDS, NAMES, SEARCHED
from scenario_pipeline_tests.support.project import DATA

CASES = [json.loads(line) for line in (DATA / "sanitiser-cases.jsonl").read_text("utf-8").splitlines()]

OWN_SENTENCES = [
    "SQLSTATE 22012 division_by_zero, constraint scenario_notifications_pkey, table scenario_notifications",
    "SQLSTATE 23505 unique_violation, constraint peer_mentors_pkey, table peer_mentors",
    "SQLSTATE P0001 raise_exception",
    "SQLSTATE 57014 query_canceled",
    "the connection to the database was refused or lost",
    "the database did not answer the connection attempt in time",
    "the database refused the connection or the statement",
    "no database connection became free in time",
    "the time budget was spent",
    "an operation timed out",
    "Connection refused (errno 111)",
    "No route to host (errno 113)",
    "KeyError was raised; its text is withheld",
    "ZeroDivisionError was raised; its text is withheld",
    "NotImplementedError was raised; its text is withheld",
    "SCENARIO_TIMEZONE must be an IANA time zone name such as Europe/Oslo.",
    "query would be affected by row-level security policy for table mentor_activities",
    "the view scenario.source_mentors has no column status, which must be text: define the view again",
    "the column expires_on of the view scenario.source_certifications is timestamp without time zone, and must be date",
    "the function of the scenario certification_expiry is not this release's: run scenario-pipeline db upgrade",
]
USEFUL_MESSAGES = [
    "HTTP 503 Service Unavailable",
    "timeout after 30 s (attempt 3/5)",
    "timed out after 30000 ms",
    "[Errno 111] Connection refused",
    "42P01: relation does not exist",
    "PGRST116 no rows",
    "std::io::Error at step",
    "took 00:01:30 total",
    "page 12 of 500",
    "TLSv1.3 alert: bad certificate",
    "python 3.11.7",
    "canceling statement due to statement timeout",
    "ratio 0.75 below 0.9",
    "authorization failed",
    "token: expired",
    "evaluation_logic_error in scenario inactivity_check",
    'duplicate key value violates unique constraint "scenario_notifications_pkey"',
    '{"code":"23505","hint":null,"message":"duplicate key value violates unique constraint"}',
    "Client error '404 Not Found'",
    "ReadTimeout: The read operation timed out",
]
CARRIERS = [
    "the engine refused the request",
    "mentor not found in table peer_mentors",
    "timed out after 30000 ms (attempt 3/5), retrying in 400 ms",
    "SQLSTATE 23505 unique_violation on page 12 of 500",
    'invalid input value for column "status": ',
    "could not connect: Connection refused; ",
    "[Errno 111] HTTP 503 Service Unavailable",
    "",
]
SEPARATORS = [" ", ", ", ": ", "=", "'", '"', "(", "/", "-", "_", ".", "\n", "\t", "\u00a0", "<", "|", "#", "\u2013"]


def _leaks(secret: str, carrier: str, output: str) -> list[str]:
    """The 5-character slices of a secret that stand in the output and can have come from nowhere else."""
    own = f"{carrier} {' '.join(LABELS)} {' '.join(PASSWORD_KEYS)} no message urn:uuid: [ip]:5432 UUID('"
    slices = {secret[i : i + 5] for i in range(len(secret) - 4)}
    return sorted(piece for piece in slices if piece in output and piece not in own)


@st.composite
def _inserted(draw: st.DrawFn, secrets: st.SearchStrategy[str], separators: list[str]) -> tuple[str, str, str]:
    """A secret, the message that carries it, and the message without it."""
    secret, carrier = draw(secrets), draw(st.sampled_from(CARRIERS))
    at = draw(st.integers(0, len(carrier)))
    before, after = draw(st.sampled_from(separators)), draw(st.sampled_from(separators))
    return secret, f"{carrier[:at]}{before}{secret}{after}{carrier[at:]}", carrier


def _uuid_shapes(value: uuid.UUID) -> list[str]:
    text, digits = str(value), value.hex
    return [
        *(text, text.upper(), digits, text.replace("-", "_"), f"{{{text}}}", value.urn, text + text, f"UUID('{text}')"),
        *(
            text.replace("-", "\u2011"),
            text.replace("-", " "),
            text[:4] + "\u200b" + text[4:],
            text.replace("-", "%2D"),
        ),
    ]


def _grouped(digits: str, sizes: list[int], mark: str) -> str:
    groups, at = [], 0
    for size in sizes:
        groups.append(digits[at : at + size])
        at += size
    return mark.join(group for group in [*groups, digits[at:]] if group)


def _digits(length: int) -> st.SearchStrategy[str]:
    return st.text("0123456789", min_size=length, max_size=length)


GROUP_MARKS = st.sampled_from([" ", "-", ".", "/", " - ", "\u00a0", "\u2011", "\u00b7", ""])
SIZES = st.lists(st.integers(1, 6), max_size=6)
PLAIN_LETTERS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=4, max_size=10)
PASSWORD_KEYS = ["password=", "pwd=", '"password": "', "API_KEY=", "access_token=", "Password is "]
BYTES = st.binary(min_size=12, max_size=40)
SECRETS: dict[str, st.SearchStrategy[str]] = {
    "uuid": st.uuids(version=4).flatmap(lambda value: st.sampled_from(_uuid_shapes(value))),
    "email": st.builds(
        "{}{}{}".format,
        st.from_regex(r"[a-zA-Zæøå]{3,8}([.+_-][a-zæøå0-9]{2,6})?", fullmatch=True),
        st.sampled_from(["@", "%40", "\\u0040", "&#64;", "\uff20", "%2540"]),
        st.sampled_from(["example.no", "localhost", "sub.example.co.uk", "ærlig.no", "xn--rlig-0ra.no"]),
    ),
    "phone": st.builds(
        lambda country, digits, sizes, mark: country + _grouped(digits, sizes, mark),
        st.sampled_from(["", "+47 ", "+47", "0047 ", "(+47) ", "tel:"]),
        _digits(8),
        SIZES,
        GROUP_MARKS,
    ),
    "national identity number": st.builds(_grouped, _digits(11), SIZES, GROUP_MARKS),
    "bank account": st.builds("NO{}".format, st.builds(_grouped, _digits(13), SIZES, GROUP_MARKS)),
    "ipv4": st.ip_addresses(v=4).map(str),
    "ipv6": st.integers(2**64, 2**128 - 1)
    .map(ipaddress.IPv6Address)
    .flatmap(lambda address: st.sampled_from([str(address), address.exploded, f"[{address}]:5432", f"{address}%eth0"])),
    "mac": st.binary(min_size=6, max_size=6).flatmap(
        lambda raw: st.sampled_from([raw.hex(":"), raw.hex("-"), raw.hex(".", 2), raw.hex(":").upper()])
    ),
    "jwt": st.builds(
        lambda *parts: "eyJ" + ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts),
        *(BYTES, BYTES, BYTES),
    ),
    "key": BYTES.flatmap(
        lambda raw: st.sampled_from(
            [raw.hex(), raw.hex().upper(), f"sb_secret_{base64.urlsafe_b64encode(raw).decode()}", f"ghp_{raw.hex()}"]
        )
    ),
    "coordinates": st.builds("{}.{}, {}.{}".format, _digits(2), _digits(6), _digits(2), _digits(6)),
    "url": st.builds("{}://{}:{}@host.example.no:5432/x?y={}".format, PLAIN_LETTERS, *[PLAIN_LETTERS] * 3),
    "password": st.builds(
        "{}{}".format,
        st.sampled_from(PASSWORD_KEYS),
        st.from_regex(r"[a-zA-Z0-9!*]{8,20}", fullmatch=True),
    ),
}


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{case['category']}-{number}" for number, case in enumerate(CASES, start=1)]
)
def test_the_corpus_loses_what_it_must_and_keeps_what_it_must(case: dict[str, Any]) -> None:
    """A shape that leaked in somebody else's logs would leak in ours."""
    output = sanitise("".join(case["message"]))
    assert [secret for secret in map("".join, case["must_vanish"]) if secret in output] == []
    assert [rest for rest in map("".join, case["must_survive"]) if rest not in output] == []


@pytest.mark.parametrize("message", OWN_SENTENCES + USEFUL_MESSAGES)
def test_a_sentence_without_a_secret_comes_out_unchanged(message: str) -> None:
    """The person on call would read [word] where the constraint's name stood."""
    assert sanitise(message) == message


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_survives_nowhere_in_a_message(kind: str) -> None:
    """Somebody's number, address or key would lie in the log storage for as long as that keeps it."""

    # Glued to a letter or a digit as well: values arrive without any border.
    @SEARCHED
    @given(_inserted(SECRETS[kind], [*SEPARATORS, "", "x", "7"]))
    def check(sample: tuple[str, str, str]) -> None:
        secret, message, carrier = sample
        assert _leaks(secret, carrier, sanitise(message)) == []

    check()


@SEARCHED
@given(
    _inserted(
        st.sampled_from(NAMES)
        | PLAIN_LETTERS.filter(lambda name: name not in LEXICON).flatmap(
            lambda name: st.sampled_from([name, name.title(), name.upper()])
        ),
        SEPARATORS,
    )
)
def test_a_name_survives_nowhere_in_a_message(sample: tuple[str, str, str]) -> None:
    """A mentor would be named as the one whose evaluation failed."""
    name, message, carrier = sample
    words = re.findall(r"\w+", sanitise(message).replace("_", " "))
    assert name not in {*words, *re.findall(r"\S+", sanitise(message))} - set(re.findall(r"\w+", carrier))


@pytest.mark.parametrize("word", sorted(NAME_WORDS))
def test_a_word_that_is_also_a_name_passes_only_in_one_case(word: str) -> None:
    """Grant and May are mentors; "grant" and "may" are what the database says."""
    assert sanitise(f"error {word} failed") == f"error {word} failed"
    assert sanitise(f"error {word.upper()} failed") == f"error {word.upper()} failed"
    assert sanitise(f"error {word.title()} failed") == "error [word] failed"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("mentor Kari Nordmann not found", "mentor [word] not found"),
        ("(psycopg.errors.UniqueViolation) failed", "(UniqueViolation) failed"),
        ('relation "kari_n" does not exist', 'relation "[word]" does not exist'),
        ("value 'left after a long illness' is invalid", "value '[value]' is invalid"),
        ("null value\nDETAIL:  Failing row contains (12, open).", "null value [cut]"),
        ("failed\n    at evaluate (engine.ts:3:4)", "failed [cut]"),
        ("failed [SQL: SELECT state] [parameters: {'a': 'open'}]", "failed [cut]"),
        ("Key (user_id)=(open) already exists", "[word] (user_id)=([value]) already exists"),
        ("could not open file /srv/state/page", "could not open file [path]"),
        ("password is hunter2", "password is [secret]"),
        ("user=postgres failed", "user=[value] failed"),
        ("code 123456 sent", "code [number] sent"),
        ("12345 rows, 123456 bytes, 54321", "12345 rows, 123456 bytes, [number]"),
        ("wait 654321 ms", "wait 654321 ms"),
        ('note "left after a long illness" is invalid', 'note "[value]" is invalid'),
        ("password=expired", "password=[secret]"),
        ("-----BEGIN KEY----- page -----END KEY----- bad", "[secret] bad"),
        ("GB29 NWBK 6016 1331 9268 19 refused", "[number] refused"),
        ("started 31.01.90", "started [number]"),
        ("position 59.9138", "position [number]"),
        ("started 2026-01-31T12:00:00Z", "started [number]"),
        ("device 1a-22-33-44-55-66 seen", "device [mac] seen"),
        ("MarkGrant failed", "[word] failed"),
        ("A1B2C denied", "[token] denied"),
    ],
)
def test_each_kind_of_value_leaves_its_label(message: str, expected: str) -> None:
    """A reader could not tell a missing name from a missing number."""
    assert sanitise(message) == expected


class _Hostile:
    def __str__(self) -> str:
        raise RuntimeError("Kari Nordmann")


class _HostileText(str):
    __slots__ = ()

    def __getitem__(self, key: Any) -> str:
        raise RuntimeError

    def __str__(self) -> str:
        return self


def _chained(depth: int) -> Exception:
    error = Exception("Kari")
    for _ in range(depth):
        outer = Exception("Nordmann")
        outer.__cause__ = error
        error = outer
    return error


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("", "no message"),
        ("\x00\u200b\u2028 \ud800", "no message"),
        (b"", "no message"),
        (b"connection \xff refused", "connection . refused"),
        (_Hostile(), "message withheld"),
        (_HostileText("connection refused"), "connection refused"),
        (_chained(3000), "[word]"),
        (KeyError("kari@example.no"), "'[email]'"),
        ("page " * 2_000_000, "page " * 98 + "[cut]"),
        ("a" * 10_000_000, "[cut]"),
        (None, "None"),
    ],
    ids=[
        *("empty", "invisible", "no bytes", "bytes", "failing str", "hostile subclass", "3000 causes", "exception"),
        *("10 MB of words", "10 MB without a blank", "None"),
    ],
)
def test_whatever_is_handed_over_comes_out_as_one_line(message: object, expected: str) -> None:
    """The entry about a failure would fail itself, and the batch with it."""
    assert sanitise(message) == expected


def test_a_number_torn_by_the_cut_does_not_survive() -> None:
    """Half of a national identity number is a date of birth."""
    for length in range(MAX_INPUT - 20, MAX_INPUT + 1):
        filler = ("Kari " * MAX_INPUT)[:length]
        assert re.search(r"\d", sanitise(f"{filler} 0101 90 12345 failed")) is None
