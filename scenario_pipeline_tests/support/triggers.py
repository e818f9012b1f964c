"""Faults that the database makes for a test: it refuses a row, or ends the connection.

Belongs here: triggers on the notifications. Does not belong here: faults of the network or of a process.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine, text


def refuse_notifications_of(engine: Engine, mentor_ids: Sequence[str], quoting: str = "") -> None:
    """Let the database refuse what is written for these mentors, as a broken rule would."""
    with engine.begin() as connection:
        connection.execute(
            text(f"""
            CREATE FUNCTION scenario.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.user_id::text = ANY ('{{{",".join(mentor_ids)}}}') THEN
                    RAISE EXCEPTION 'no message for {quoting}' USING
                        DETAIL = 'Key (full_name)=({quoting})', CONSTRAINT = '{quoting}', TABLE = '{quoting}';
                END IF;
                RETURN NEW;
            END $$""")
        )
        connection.execute(text(
            "CREATE TRIGGER refuse BEFORE INSERT ON scenario.scenario_notifications "
            "FOR EACH ROW EXECUTE FUNCTION scenario.refuse()"))  # fmt: skip


def lose_the_connection_for(engine: Engine, mentor_id: str) -> None:
    """Let the backend that writes to this mentor end itself."""
    with engine.begin() as connection:
        connection.execute(
            text("""
            CREATE FUNCTION scenario.die() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_terminate_backend(pg_backend_pid());
                RETURN NEW;
            END $$""")
        )
        connection.execute(
            text(f"""
            CREATE TRIGGER die BEFORE INSERT ON scenario.scenario_notifications
            FOR EACH ROW WHEN (NEW.user_id = '{mentor_id}') EXECUTE FUNCTION scenario.die()""")
        )
