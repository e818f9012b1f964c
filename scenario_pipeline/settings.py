"""Settings: the environment variables of contract section 7, read once and checked.

Belongs here: names, defaults and bounds of the variables. Does not belong here: what they are used for.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache, lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from scenario_pipeline.failures import UserError

DEFAULT_TIME_BUDGET_SECONDS = 30.0
MAX_TIME_BUDGET_SECONDS = 86_400.0
MAX_PAGE_SIZE = 100_000
DEFAULT_MAX_ERROR_RATE = 0.01
DEFAULT_ENGINE_CONCURRENCY, MAX_ENGINE_CONCURRENCY = 4, 64
# The maximum is also how many mentors the project's own engine accepts in one request.
DEFAULT_ENGINE_CHUNK_SIZE, MAX_ENGINE_CHUNK_SIZE = 100, 1000
EngineName = Literal["sql", "http"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

_PREFIX = "SCENARIO_"
# The variables of contract section 7 that a part of this project reads.
VARIABLES = frozenset(
    f"{_PREFIX}{name}"
    for name in (
        "CRON",
        "DAGSTER_DATABASE_URL",
        "DATABASE_URL",
        "ENGINE",
        "ENGINE_CHUNK_SIZE",
        "ENGINE_CONCURRENCY",
        "ENGINE_TOKEN",
        "ENGINE_TRUST_PROXY",
        "ENGINE_URL",
        "HOME",
        "MAX_ERROR_RATE",
        "PAGE_SIZE",
        "TIMEZONE",
        "TIME_BUDGET_SECONDS",
    )
)
# Those that nothing reads yet. Their names are reserved; a person who sets one must learn that it does nothing.
UNREAD_VARIABLES = frozenset(
    f"{_PREFIX}{name}"
    for name in (
        "ALERT_URL",
        "CONNECTIONS",
        "DELIVERY",
        "DELIVERY_DATABASE_URL",
        "DELIVERY_TIME_BUDGET_SECONDS",
        "SHARDS",
        "SMTP_FROM",
        "SMTP_URL",
        "UNSUBSCRIBE_URL",
    )
)
_UNREAD_ENDPOINT = re.compile(r"SCENARIO_ENDPOINT_[A-Z0-9_]{1,60}_(?:URL|SECRETS)")
_MAX_NAME = 100

# Placeholders in the zone database, and this machine's own zone, which other machines do not know.
_NO_ZONES = frozenset({"Factory", "localtime", "posixrules"})
# Copies of all zones; those in `right` count leap seconds.
_OTHER_COUNTS = frozenset({"posix", "right"})

# In a checkout, the folder with pyproject.toml, dagster.yaml and workspace.yaml; otherwise just `site-packages`.
PROJECT_FOLDER = Path(__file__).resolve().parent.parent
PROJECT_NAME = "scenario-pipeline"


@dataclass(frozen=True)
class Settings:
    """The settings that the environment gives.

    Attributes:
        home: folder of the embedded Postgres and of Dagster's local files.
        database_url: the scheduler's own database, or None for the embedded Postgres.
        dagster_database_url: Dagster's instance storage, or None for a database `dagster` on the same server.
        timezone: the zone at whose midnight the evaluation date changes.
        time_budget_seconds: how long a run may evaluate, in seconds.
        page_size: mentors a page, or None to let it grow with the number of mentors.
        engine: which trigger engine evaluates, `sql` or `http`.
        engine_url: base URL of the `http` engine.
        engine_token: its bearer token; kept out of `repr`.
        engine_concurrency: how many requests it gets at the same time.
        engine_chunk_size: mentors a request.
        engine_trust_proxy: whether the proxy variables of the environment (`HTTPS_PROXY` and the like) apply to it.
        cron: when the schedule for all scenarios ticks.
        max_error_rate: share of mentors with an error, 0 to 1, above which the check `error_rate` warns.
    """

    home: Path
    database_url: str | None = field(repr=False)
    dagster_database_url: str | None = field(repr=False)
    timezone: ZoneInfo
    time_budget_seconds: float
    page_size: int | None
    engine: str
    engine_url: str | None = field(repr=False)
    engine_token: str | None = field(repr=False)
    engine_concurrency: int
    engine_chunk_size: int
    engine_trust_proxy: bool
    cron: str
    max_error_rate: float

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read and check the variables; an empty value counts as unset.

        Raises:
            UserError: a value cannot work; the message names its variable, and never quotes a value that may hold a
                secret.
        """
        env = os.environ if environment is None else environment

        def get(name: str) -> str | None:
            return env.get(name, "").strip() or None

        engine = _engine(get("SCENARIO_ENGINE") or "sql")
        return cls(
            home=_home(get("SCENARIO_HOME"), get("XDG_DATA_HOME")),
            database_url=_postgres("SCENARIO_DATABASE_URL", get("SCENARIO_DATABASE_URL")),
            dagster_database_url=_postgres("SCENARIO_DAGSTER_DATABASE_URL", get("SCENARIO_DAGSTER_DATABASE_URL")),
            timezone=_timezone(get("SCENARIO_TIMEZONE") or "Europe/Oslo"),
            time_budget_seconds=check_time_budget(
                "SCENARIO_TIME_BUDGET_SECONDS", get("SCENARIO_TIME_BUDGET_SECONDS") or DEFAULT_TIME_BUDGET_SECONDS
            ),
            page_size=check_page_size("SCENARIO_PAGE_SIZE", get("SCENARIO_PAGE_SIZE")),
            engine=engine,
            engine_url=_engine_url(get("SCENARIO_ENGINE_URL"), needed=engine == "http"),
            engine_token=_token(get("SCENARIO_ENGINE_TOKEN")),
            engine_concurrency=_whole_number(
                "SCENARIO_ENGINE_CONCURRENCY",
                get("SCENARIO_ENGINE_CONCURRENCY") or DEFAULT_ENGINE_CONCURRENCY,
                "requests",
                MAX_ENGINE_CONCURRENCY,
            ),
            engine_chunk_size=_whole_number(
                "SCENARIO_ENGINE_CHUNK_SIZE",
                get("SCENARIO_ENGINE_CHUNK_SIZE") or DEFAULT_ENGINE_CHUNK_SIZE,
                "mentors",
                MAX_ENGINE_CHUNK_SIZE,
            ),
            engine_trust_proxy=_switch("SCENARIO_ENGINE_TRUST_PROXY", get("SCENARIO_ENGINE_TRUST_PROXY")),
            cron=get("SCENARIO_CRON") or "0 * * * *",
            max_error_rate=_share("SCENARIO_MAX_ERROR_RATE", get("SCENARIO_MAX_ERROR_RATE") or DEFAULT_MAX_ERROR_RATE),
        )

    @property
    def needed_engine_url(self) -> str:
        """The base URL of the `http` engine, for a run that uses it.

        Raises:
            UserError: none is set.
        """
        return _engine_url(self.engine_url, needed=True) or ""

    def today(self, now: datetime) -> date:
        """Return the evaluation date of the moment `now` (timezone-aware) in the configured time zone."""
        return now.astimezone(self.timezone).date()


@cache
def is_checkout(folder: Path) -> bool:
    """Whether `folder` is a checkout of this project, going by the name in its `pyproject.toml`."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):  # missing; not readable; not TOML, or not UTF-8
        return False
    return isinstance(project, dict) and project.get("name") == PROJECT_NAME


def default_home(folder: Path, data_home: str | None) -> Path:
    """Return where data is stored if `SCENARIO_HOME` is not set (contract section 7).

    Args:
        folder: the folder that holds the package. A checkout keeps its own data. `site-packages` must not: deleting a
            virtual environment would then delete the record of what was sent.
        data_home: `XDG_DATA_HOME`; by its specification, a relative path counts as unset.
    """
    if is_checkout(folder):
        return folder / ".scenario"
    base = Path(data_home) if data_home and Path(data_home).is_absolute() else Path("~/.local/share")
    return base / PROJECT_NAME


def check_time_budget(name: str, value: str | float) -> float:
    """Return a time budget in seconds, more than 0 and at most a day; `name` is the setting it comes from."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= MAX_TIME_BUDGET_SECONDS:
        raise UserError(f"{name} must be a number of seconds above 0 and at most {MAX_TIME_BUDGET_SECONDS:.0f}.")
    return seconds


def check_page_size(name: str, value: str | int | None) -> int | None:
    """Return a page size from 1 to 100,000 mentors, or None if none is set."""
    return None if value is None else _whole_number(name, value, "mentors", MAX_PAGE_SIZE)


def _whole_number(name: str, value: str | int, unit: str, maximum: int) -> int:
    # int() would also accept underscores and digits of other scripts.
    readable = isinstance(value, int) or (value.isascii() and value.isdigit() and len(value) < 10)
    number = int(value) if readable else 0
    if not 1 <= number <= maximum:
        raise UserError(f"{name} must be a whole number of {unit} from 1 to {maximum}.")
    return number


def _switch(name: str, value: str | None) -> bool:
    if value not in (None, "true", "false"):
        raise UserError(f"{name} must be true or false.")
    return value == "true"


def _token(value: str | None) -> str | None:
    """Accept what an HTTP header can hold (RFC 6750); the message must not quote it."""
    if value is not None and not (value.isascii() and value.isprintable() and " " not in value):
        raise UserError("SCENARIO_ENGINE_TOKEN must consist of ASCII letters, digits and signs, without spaces.")
    return value


def _share(name: str, value: str | float) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"{name} must be a number from 0 to 1.")
    return share


def _engine(value: str) -> str:
    if value not in ENGINES:
        raise UserError(f"SCENARIO_ENGINE must be one of {', '.join(ENGINES)}.")
    return value


def _engine_url(value: str | None, *, needed: bool) -> str | None:
    if value is None and not needed:
        return None
    if value is None or not value.startswith(("http://", "https://")):
        raise UserError("SCENARIO_ENGINE_URL must be the base URL of the http engine, beginning with https://.")
    try:
        parts = urlsplit(value)
        host = parts.hostname if parts.port != 0 else None
    except ValueError:  # its text quotes the value
        host = None
    if not host or not value.isascii() or not value.isprintable() or " " in value:
        raise UserError("SCENARIO_ENGINE_URL has no valid host and port: write https://host:port/path.")
    if "@" in parts.netloc or "?" in value or "#" in value:
        raise UserError(
            "SCENARIO_ENGINE_URL must hold no user, password, query or fragment: the token is SCENARIO_ENGINE_TOKEN."
        )
    if parts.scheme != "https" and not is_loopback(host):
        raise UserError("SCENARIO_ENGINE_URL must begin with https:// unless its host is this machine (127.0.0.1).")
    return value.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether `host` is `localhost` or a loopback address; other names are not resolved, because they may change."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _home(value: str | None, data_home: str | None) -> Path:
    if value is not None:
        return _folder(value)
    try:
        return default_home(PROJECT_FOLDER, data_home).expanduser().resolve()
    except RuntimeError:  # no HOME, and no entry in passwd
        raise UserError("No home folder is known for this user: set SCENARIO_HOME.") from None


def _folder(value: str) -> Path:
    try:
        return Path(value).expanduser().resolve()
    except (OSError, RuntimeError):  # a loop of links; `~` of a user who has no home folder
        raise UserError("SCENARIO_HOME must be the path of a folder.") from None


def _postgres(name: str, value: str | None) -> str | None:
    if value is None:
        return None
    # Imported here because most commands read settings, and few of them need a database driver.
    from scenario_pipeline.conninfo import checked

    return checked(name, value)


@lru_cache(maxsize=4096)
def is_timezone(name: str) -> bool:
    """Whether a name is an IANA time zone; the zone database also holds files that are not zones."""
    try:
        key = ZoneInfo(name).key
    except (KeyError, OSError, ValueError):  # unknown name; a folder of the zone database; a malformed key
        return False
    return key not in _NO_ZONES and key.partition("/")[0] not in _OTHER_COUNTS


def _timezone(value: str) -> ZoneInfo:
    if not is_timezone(value):
        raise UserError("SCENARIO_TIMEZONE must be an IANA time zone name such as Europe/Oslo.")
    return ZoneInfo(value)


def unread_variables(environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield each setting that is set and that no part of this release reads."""
    env = os.environ if environment is None else environment
    for name, value in sorted(env.items()):
        if value.strip() and _is_unread(name):
            yield name


def unknown_variables(environment: Mapping[str, str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield each variable that looks like a setting but is none, with the setting whose name is nearest."""
    env = os.environ if environment is None else environment
    names = {name.removeprefix(_PREFIX): name for name in sorted(VARIABLES)}
    for name, value in sorted(env.items()):
        if name.startswith(_PREFIX) and value.strip() and name not in VARIABLES and not _is_unread(name):
            [nearest] = difflib.get_close_matches(name.removeprefix(_PREFIX).upper()[:_MAX_NAME], names, 1, cutoff=0.0)
            yield re.sub("[^!-~]", "?", name[:_MAX_NAME]), names[nearest]


def _is_unread(name: str) -> bool:
    return name in UNREAD_VARIABLES or _UNREAD_ENDPOINT.fullmatch(name) is not None
