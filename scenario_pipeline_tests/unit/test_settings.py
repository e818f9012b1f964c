"""Settings from the environment: each has its own variable, and a bad value is one sentence."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from scenario_pipeline.errors import UserError
from scenario_pipeline.settings import PROJECT_FOLDER, Settings, check_page_size, check_time_budget


def test_nothing_needs_to_be_set() -> None:
    assert Settings.from_environment({}) == Settings(
        home=PROJECT_FOLDER / ".scenario",
        database_url=None,
        dagster_database_url=None,
        timezone=ZoneInfo("Europe/Oslo"),
        time_budget_seconds=30.0,
        page_size=None,
        engine="sql",
        engine_url=None,
        engine_token=None,
        engine_concurrency=4,
        engine_chunk_size=100,
        engine_trust_proxy=False,
        cron="0 * * * *",
        max_error_rate=0.01,
    )


def test_the_process_environment_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENARIO_PAGE_SIZE", "7")
    assert Settings.from_environment().page_size == 7
    assert Settings.from_environment({}).page_size is None


@pytest.mark.parametrize(
    ("variable", "value", "attribute", "expected"),
    [
        ("SCENARIO_HOME", "/srv/scenario", "home", Path("/srv/scenario")),
        ("SCENARIO_HOME", "/srv/../srv/scenario/", "home", Path("/srv/scenario")),
        ("SCENARIO_HOME", "~/scenario", "home", Path.home().resolve() / "scenario"),
        ("SCENARIO_HOME", "scenario", "home", Path.cwd() / "scenario"),
        ("SCENARIO_DATABASE_URL", "postgresql://u:p@h:5432/d", "database_url", "postgresql://u:p@h:5432/d"),
        ("SCENARIO_DATABASE_URL", "postgres://h/d", "database_url", "postgres://h/d"),
        ("SCENARIO_DAGSTER_DATABASE_URL", "postgresql:///d", "dagster_database_url", "postgresql:///d"),
        ("SCENARIO_TIMEZONE", "America/St_Johns", "timezone", ZoneInfo("America/St_Johns")),
        ("SCENARIO_TIMEZONE", "UTC", "timezone", ZoneInfo("UTC")),
        ("SCENARIO_TIME_BUDGET_SECONDS", "0.25", "time_budget_seconds", 0.25),
        ("SCENARIO_TIME_BUDGET_SECONDS", "86400", "time_budget_seconds", 86_400.0),
        ("SCENARIO_PAGE_SIZE", "1", "page_size", 1),
        ("SCENARIO_MAX_ERROR_RATE", "0", "max_error_rate", 0.0),
        ("SCENARIO_MAX_ERROR_RATE", "1", "max_error_rate", 1.0),
        ("SCENARIO_PAGE_SIZE", "100000", "page_size", 100_000),
        ("SCENARIO_ENGINE", "sql", "engine", "sql"),
        ("SCENARIO_ENGINE_URL", "https://engine.example/base", "engine_url", "https://engine.example/base"),
        ("SCENARIO_ENGINE_URL", "https://engine.example:8443/", "engine_url", "https://engine.example:8443"),
        ("SCENARIO_ENGINE_URL", "http://127.0.0.1:8642", "engine_url", "http://127.0.0.1:8642"),
        ("SCENARIO_ENGINE_URL", "http://[::1]:8642", "engine_url", "http://[::1]:8642"),
        ("SCENARIO_ENGINE_URL", "http://localhost", "engine_url", "http://localhost"),
        ("SCENARIO_ENGINE_TOKEN", "t0ken", "engine_token", "t0ken"),
        ("SCENARIO_ENGINE_CONCURRENCY", "64", "engine_concurrency", 64),
        ("SCENARIO_ENGINE_CHUNK_SIZE", "1000", "engine_chunk_size", 1000),
        ("SCENARIO_ENGINE_TRUST_PROXY", "true", "engine_trust_proxy", True),
        ("SCENARIO_CRON", "*/15 6-22 * * 1-5", "cron", "*/15 6-22 * * 1-5"),
    ],
)
def test_a_variable_sets_its_own_value_and_no_other(variable: str, value: str, attribute: str, expected: Any) -> None:
    default, changed = Settings.from_environment({}), Settings.from_environment({variable: f" {value} "})
    assert {name: getattr(changed, name) for name in vars(default)} == {**vars(default), attribute: expected}


@pytest.mark.parametrize(
    "variable",
    [
        "SCENARIO_HOME",
        "SCENARIO_DATABASE_URL",
        "SCENARIO_DAGSTER_DATABASE_URL",
        "SCENARIO_TIMEZONE",
        "SCENARIO_TIME_BUDGET_SECONDS",
        "SCENARIO_PAGE_SIZE",
        "SCENARIO_ENGINE",
        "SCENARIO_ENGINE_URL",
        "SCENARIO_ENGINE_TOKEN",
        "SCENARIO_CRON",
    ],
)
@pytest.mark.parametrize("empty", ["", "  "], ids=["empty", "blank"])
def test_an_empty_variable_counts_as_unset(variable: str, empty: str) -> None:
    """Compose files pass variables on that nobody has set."""
    assert Settings.from_environment({variable: empty}) == Settings.from_environment({})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SCENARIO_HOME", "~no-such-user-here/scenario"),
        ("SCENARIO_DATABASE_URL", "mysql://kari:s3cret@db/scenario"),
        ("SCENARIO_DATABASE_URL", "postgresql+psycopg://kari:s3cret@db/scenario"),
        ("SCENARIO_DATABASE_URL", "host=db password=s3cret"),
        ("SCENARIO_DAGSTER_DATABASE_URL", "sqlite:///s3cret.db"),
        ("SCENARIO_TIMEZONE", "Europe/Atlantis"),
        ("SCENARIO_TIMEZONE", "Europe"),
        ("SCENARIO_TIMEZONE", "../../etc/passwd"),
        ("SCENARIO_TIMEZONE", "/etc/localtime"),
        pytest.param("SCENARIO_TIMEZONE", "Ærø/" + "x" * 300, id="SCENARIO_TIMEZONE-long"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "0"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "-1"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "nan"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "inf"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "86400.1"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "thirty"),
        ("SCENARIO_PAGE_SIZE", "0"),
        ("SCENARIO_PAGE_SIZE", "-5"),
        ("SCENARIO_PAGE_SIZE", "1.5"),
        ("SCENARIO_PAGE_SIZE", "100001"),
        ("SCENARIO_MAX_ERROR_RATE", "-0.1"),
        ("SCENARIO_MAX_ERROR_RATE", "1.1"),
        ("SCENARIO_MAX_ERROR_RATE", "nan"),
        ("SCENARIO_MAX_ERROR_RATE", "5%"),
        pytest.param("SCENARIO_PAGE_SIZE", "9" * 5000, id="SCENARIO_PAGE_SIZE-5000 digits"),
        ("SCENARIO_ENGINE", "SQL"),
        ("SCENARIO_ENGINE", "grpc"),
        ("SCENARIO_ENGINE_URL", "ftp://kari:s3cret@engine"),
        ("SCENARIO_ENGINE_URL", "s3cret"),
        ("SCENARIO_ENGINE_URL", "https://kari:s3cret@engine.example"),
        ("SCENARIO_ENGINE_URL", "https://engine.example/?token=s3cret"),
        ("SCENARIO_ENGINE_URL", "https://engine.example/#s3cret"),
        ("SCENARIO_ENGINE_URL", "http://engine.example"),
        ("SCENARIO_ENGINE_URL", "http://127.0.0.1.s3cret.example"),
        ("SCENARIO_ENGINE_URL", "https://"),
        ("SCENARIO_ENGINE_URL", "https://engine.example:99999"),
        ("SCENARIO_ENGINE_URL", "https://[::1"),
        ("SCENARIO_ENGINE_URL", "https://engine.example/s3 cret"),
        ("SCENARIO_ENGINE_TOKEN", "s3cret kari"),
        ("SCENARIO_ENGINE_TOKEN", "s3cret\nkari"),
        ("SCENARIO_ENGINE_TOKEN", "s3cr\u00e9t"),
        ("SCENARIO_ENGINE_CONCURRENCY", "0"),
        ("SCENARIO_ENGINE_CONCURRENCY", "65"),
        ("SCENARIO_ENGINE_CHUNK_SIZE", "1001"),
        ("SCENARIO_ENGINE_CHUNK_SIZE", "-1"),
        ("SCENARIO_ENGINE_TRUST_PROXY", "yes"),
    ],
)
def test_a_value_that_cannot_work_is_one_sentence_that_names_the_variable(variable: str, value: str) -> None:
    """The person who set it must find it, and a reader of the start-up log must not find a password."""
    with pytest.raises(UserError) as caught:
        Settings.from_environment({variable: value})
    sentence = str(caught.value)
    assert sentence.startswith(f"{variable} ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert caught.value.exit_status == 2
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert [part for part in ("s3cret", "kari", "passwd", "Atlantis", "99999") if part in sentence] == []


def test_the_http_engine_needs_a_url() -> None:
    with pytest.raises(UserError, match=r"^SCENARIO_ENGINE_URL "):
        Settings.from_environment({"SCENARIO_ENGINE": "http"})
    url = "https://engine.example"
    assert Settings.from_environment({"SCENARIO_ENGINE": "http", "SCENARIO_ENGINE_URL": url}).engine == "http"


def test_secrets_do_not_stand_in_a_repr() -> None:
    """Dagster shows the repr of what a resource holds; so does every traceback with local variables."""
    settings = Settings.from_environment(
        {
            "SCENARIO_DATABASE_URL": "postgresql://u:s3cret@h/d",
            "SCENARIO_DAGSTER_DATABASE_URL": "postgresql://u:s3cret@h/d",
            "SCENARIO_ENGINE_URL": "https://engine.example/s3cret",
            "SCENARIO_ENGINE_TOKEN": "s3cret",
            "SCENARIO_TIMEZONE": "UTC",
        }
    )
    assert "s3cret" not in f"{settings!r} {settings}"
    assert "key='UTC'" in repr(settings)


@pytest.mark.parametrize(
    ("timezone", "today"),
    [("Europe/Oslo", "2026-03-01"), ("UTC", "2026-02-28"), ("Pacific/Kiritimati", "2026-03-01")],
)
def test_the_evaluation_date_changes_at_midnight_of_the_configured_zone(timezone: str, today: str) -> None:
    settings = Settings.from_environment({"SCENARIO_TIMEZONE": timezone})
    assert settings.today(datetime(2026, 2, 28, 23, 30, tzinfo=UTC)).isoformat() == today


def test_a_refused_option_is_named_as_it_was_given() -> None:
    """The command line checks its options with the same rules."""
    with pytest.raises(UserError, match=r"^--time-budget "):
        check_time_budget("--time-budget", -1.0)
    with pytest.raises(UserError, match=r"^--page-size "):
        check_page_size("--page-size", 0)
    assert (check_time_budget("--time-budget", 5), check_page_size("--page-size", 20)) == (5.0, 20)
    assert check_page_size("--page-size", None) is None
