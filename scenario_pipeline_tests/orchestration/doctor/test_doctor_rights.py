"""`doctor` names each role that may do what only owner and scheduler need, and the statement that takes it away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline_tests.support.doctor import Examine


@pytest.fixture
def strangers(engine: Engine) -> Iterator[Engine]:
    """A server with the roles `anon`, its member `bob`, and `carol`; gone afterwards with all that they were given."""
    with engine.begin() as connection:
        for statement in ("CREATE ROLE anon", "CREATE ROLE bob IN ROLE anon", "CREATE ROLE carol", "CREATE ROLE dan"):
            connection.execute(text(statement))
        connection.execute(text("GRANT USAGE ON SCHEMA scenario TO anon, carol"))
    yield engine
    with engine.begin() as connection:
        for role in ("bob", "anon", "carol", "dan"):
            connection.execute(text(f"REASSIGN OWNED BY {role} TO scenario_owner"))
            connection.execute(text(f"DROP OWNED BY {role} CASCADE"))
            connection.execute(text(f"DROP ROLE {role}"))


def run(engine: Engine, statements: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statements))


NEED = "rights that only owner and scheduler need:"
WRITE, READ = "to write the ledger", "to read personal columns"
EXECUTE = "to execute functions with their owner's rights"


@pytest.mark.parametrize(
    ("grant", "sentence", "remedy"),
    [
        (
            "GRANT DELETE, INSERT ON scenario.scenario_notifications TO carol",
            f"The role carol has {NEED} {WRITE} (scenario.scenario_notifications).",
            "REVOKE DELETE, INSERT ON scenario.scenario_notifications FROM carol",
        ),
        (
            "GRANT UPDATE (resume_after) ON scenario.scheduler_runs TO carol",
            f"The role carol has {NEED} {WRITE} (scenario.scheduler_runs).",
            "REVOKE UPDATE (resume_after) ON scenario.scheduler_runs FROM carol",
        ),
        (
            "GRANT TRUNCATE ON scenario.scheduler_runs, scenario.scheduler_run_pages TO scenario_reader",
            f"The role scenario_reader has {NEED} {WRITE} (scenario.scheduler_run_pages and 1 more).",
            "REVOKE TRUNCATE ON scenario.scheduler_run_pages, scenario.scheduler_runs FROM scenario_reader",
        ),
        (
            "GRANT UPDATE ON SEQUENCE scenario.scheduler_runs_number_seq TO carol",
            f"The role carol has {NEED} {WRITE} (scenario.scheduler_runs_number_seq).",
            "REVOKE UPDATE ON SEQUENCE scenario.scheduler_runs_number_seq FROM carol",
        ),
        (
            "GRANT SELECT (id, email, phone) ON scenario.peer_mentors TO anon",
            f"The role anon has {NEED} {READ} (scenario.peer_mentors); its members have them too: bob.",
            "REVOKE SELECT (email), SELECT (phone) ON scenario.peer_mentors FROM anon",
        ),
        (
            "GRANT SELECT ON scenario.peer_mentors TO carol; GRANT SELECT (email) ON scenario.peer_mentors TO carol",
            f"The role carol has {NEED} {READ} (scenario.peer_mentors).",
            "REVOKE SELECT ON scenario.peer_mentors FROM carol",
        ),
        (
            "CREATE VIEW public.people AS SELECT id, full_name AS name FROM scenario.peer_mentors;"
            "GRANT SELECT ON public.people TO carol",
            f"The role carol has {NEED} {READ} (public.people).",
            "REVOKE SELECT ON public.people FROM carol",
        ),
        (
            "CREATE VIEW public.people AS SELECT id, full_name AS name FROM scenario.peer_mentors;"
            "GRANT SELECT ON public.people TO PUBLIC",
            f"Everybody has {NEED} {READ} (public.people).",
            "REVOKE SELECT ON public.people FROM PUBLIC",
        ),
        (
            "GRANT EXECUTE ON FUNCTION scenario.mentors_of TO carol",
            f"The role carol has {NEED} {EXECUTE} (scenario.mentors_of(uuid[])).",
            "REVOKE EXECUTE ON FUNCTION scenario.mentors_of(uuid[]) FROM carol",
        ),
        (
            'ALTER ROLE dan RENAME TO "Dan ""x"""; GRANT DELETE ON scenario.scheduler_runs TO "Dan ""x"""',
            f'The role "Dan ""x""" has {NEED} {WRITE} (scenario.scheduler_runs).',
            'REVOKE DELETE ON scenario.scheduler_runs FROM "Dan ""x"""; ALTER ROLE "Dan ""x""" RENAME TO dan',
        ),
        (
            "GRANT DELETE ON scenario.scheduler_runs TO carol WITH GRANT OPTION; SET LOCAL ROLE carol; "
            "GRANT DELETE ON scenario.scheduler_runs TO dan",
            f"The role carol has {NEED} {WRITE} (scenario.scheduler_runs).",
            "REVOKE DELETE ON scenario.scheduler_runs FROM carol CASCADE",
        ),
        (
            "GRANT pg_write_all_data TO carol",
            f"The role carol is a member of pg_write_all_data, and so has the right {WRITE}.",
            "REVOKE pg_write_all_data FROM carol",
        ),
        (
            "ALTER TABLE scenario.scheduler_run_requests OWNER TO carol",
            "The table scenario.scheduler_run_requests belongs to the role carol, which may do with it what it likes.",
            "ALTER TABLE scenario.scheduler_run_requests OWNER TO scenario_owner",
        ),
        (
            "ALTER DEFAULT PRIVILEGES FOR ROLE scenario_owner IN SCHEMA scenario GRANT ALL ON TABLES TO anon",
            "What scenario_owner creates in the schema scenario is open to the role anon: "
            "default privileges on tables.",
            "ALTER DEFAULT PRIVILEGES FOR ROLE scenario_owner IN SCHEMA scenario REVOKE ALL ON TABLES FROM anon",
        ),
        (
            "ALTER DEFAULT PRIVILEGES FOR ROLE scenario_owner GRANT EXECUTE ON FUNCTIONS TO anon",
            "What scenario_owner creates in the schema scenario is open to the role anon: "
            "default privileges on functions.",
            "ALTER DEFAULT PRIVILEGES FOR ROLE scenario_owner REVOKE ALL ON FUNCTIONS FROM anon",
        ),
    ],
)
def test_a_right_that_a_stranger_has_is_named_and_taken_away(
    examine: Examine, strangers: Engine, grant: str, sentence: str, remedy: str
) -> None:
    """Whoever writes the ledger decides who is told what, and nobody looks at the grants of a role that is not ours."""
    run(strangers, grant)
    first, *others = [finding for finding in examine().wrong if finding["check"] == "roles"]
    assert (first["status"], first["finding"]) == ("problem", sentence)
    assert first["remedy"] == remedy.partition("; ALTER ROLE")[0]
    assert all("dan" in other["finding"] for other in others)
    run(strangers, remedy)
    assert examine().wrong == []


def test_all_that_was_granted_to_an_anonymous_role_is_taken_away_by_one_line(
    examine: Examine, strangers: Engine
) -> None:
    """The statement that hosting providers' guides suggest, and what helps against it."""
    run(
        strangers,
        "GRANT ALL ON ALL TABLES IN SCHEMA scenario TO anon; GRANT ALL ON ALL ROUTINES IN SCHEMA scenario TO anon",
    )
    [finding] = examine().wrong
    assert finding["finding"].startswith(f"The role anon has {NEED} {WRITE} (scenario.alembic_version and 6 more), ")
    assert "scenario.request_scheduler_run(" in finding["remedy"]
    run(strangers, finding["remedy"])
    assert examine().wrong == []
    with strangers.connect() as connection:
        connection.execute(text("SET ROLE bob"))
        allowed = connection.execute(
            text("SELECT has_function_privilege('scenario.mentors_of(uuid[])', 'EXECUTE'), "
                 "has_table_privilege('scenario.scenario_notifications', 'DELETE'), "
                 "has_any_column_privilege('scenario.peer_mentors', 'UPDATE')")
        ).one()  # fmt: skip
    assert tuple(allowed) == (False, False, True)


@pytest.mark.parametrize(
    "harmless",
    [
        "GRANT EXECUTE ON FUNCTION scenario.request_scheduler_run TO carol",
        "GRANT SELECT (id, status) ON scenario.peer_mentors TO carol",
        "GRANT SELECT ON scenario.mentor_activities, scenario.scheduler_runs TO carol",
        "GRANT INSERT ON scenario.mentor_activities TO carol",
        "CREATE VIEW public.people WITH (security_invoker = true) AS SELECT full_name FROM scenario.peer_mentors;"
        "GRANT SELECT ON public.people TO carol",
        "CREATE VIEW public.people AS SELECT id FROM scenario.peer_mentors; GRANT SELECT ON public.people TO carol",
        "GRANT scenario_owner TO carol; GRANT DELETE ON scenario.scheduler_runs TO carol",
        "GRANT scenario_scheduler TO carol",
        "ALTER ROLE carol SUPERUSER; GRANT DELETE ON scenario.scheduler_runs TO carol",
        "ALTER ROLE carol NOINHERIT; GRANT pg_write_all_data TO carol",
    ],
)
def test_rights_that_harm_nobody_are_left_alone(examine: Examine, strangers: Engine, harmless: str) -> None:
    """The negative twin: a clock, an app, a report and an administrator need theirs."""
    run(strangers, harmless)
    assert [finding for finding in examine().wrong if finding["check"] == "roles"] == []


def test_the_owner_of_the_database_is_no_stranger(examine: Examine, strangers: Engine, database_url: str) -> None:
    """On a hosted server it is the role that people have, and it is no superuser there."""
    name = strangers.url.database
    run(strangers, f'ALTER DATABASE "{name}" OWNER TO carol; GRANT ALL ON ALL TABLES IN SCHEMA scenario TO carol')
    assert examine().wrong == []
    run(strangers, f'ALTER DATABASE "{name}" OWNER TO scenario')
    assert [finding["finding"].partition(" (")[0] for finding in examine().wrong] == [
        f"The role carol has {NEED} {WRITE}"
    ]


@pytest.mark.parametrize(
    ("damage", "sentence", "remedy"),
    [
        (
            "ALTER TABLE scenario.peer_mentors DROP COLUMN locale",
            "The table scenario.peer_mentors has no column locale, which must be text.",
            "make the table like the one that scenario-pipeline db upgrade creates in an empty database",
        ),
        (
            "ALTER TABLE scenario.scheduler_run_pages DROP COLUMN left_mentor_ids",
            "The table scenario.scheduler_run_pages has no column left_mentor_ids, which must be uuid[].",
            "make the table like the one that scenario-pipeline db upgrade creates in an empty database",
        ),
    ],
)
def test_a_table_of_another_edition_is_found_before_a_run_fails(
    examine: Examine, engine: Engine, damage: str, sentence: str, remedy: str
) -> None:
    """The version is that of this release, and yet a column is missing that a statement names."""
    run(engine, damage)
    [finding] = examine().wrong
    assert (finding["check"], finding["finding"], finding["remedy"]) == ("tables", sentence, remedy)
