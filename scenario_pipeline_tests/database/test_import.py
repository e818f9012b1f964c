"""What an import of CSV files writes, changes and leaves alone."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from scenario_pipeline.loading.merge import import_folder
from scenario_pipeline_tests.support.csv_folders import (
    GOOD,
    MENTOR,
    ORGANISATION,
    OTHER_MENTOR,
    OTHER_ORGANISATION,
    activities,
    contents,
    edit,
    write,
)
from scenario_pipeline_tests.support.project import COMMUNITY


def test_the_community_data_are_imported_in_full(engine: Engine) -> None:
    """Otherwise somebody's mentors would be missing from every evaluation, and nobody would know."""
    counts = import_folder(engine, COMMUNITY)

    assert counts == {"organisations": 3, "mentors": 1390, "activities": 17425, "certifications": 1390}
    assert {name: len(rows) for name, rows in contents(engine).items()} == counts


def test_importing_the_same_folder_again_changes_nothing(engine: Engine) -> None:
    """Otherwise every activity would count twice, and mentors be congratulated for milestones nobody reached."""
    import_folder(engine, COMMUNITY)
    before = contents(engine)

    import_folder(engine, COMMUNITY)

    assert contents(engine) == before


def test_every_field_arrives_where_it_belongs(engine: Engine, good: Path) -> None:
    """Otherwise a telephone number could stand where a name is shown."""
    assert import_folder(engine, good) == {"organisations": 2, "mentors": 2, "activities": 3, "certifications": 2}

    found = contents(engine)
    assert found["organisations"] == [
        (ORGANISATION, "Canarynorth", "Europe/Oslo"),
        (OTHER_ORGANISATION, "Canarywest", "UTC"),
    ]
    assert found["mentors"] == [
        (MENTOR, ORGANISATION, None, "active", "Canaryfirst Canarylast", "canary.1@mentor.invalid", "+47 40000001",
         "nn", "2020-01-31", False),
        (OTHER_MENTOR, OTHER_ORGANISATION, None, "left", "Canarysecond", None, None, None, "2021-02-28", False),
    ]  # fmt: skip
    assert activities(engine) == {
        (MENTOR, "canaryvisit", "2024-02-29"): 2,
        (OTHER_MENTOR, "canarycall", "2024-03-01"): 1,
    }
    assert found["certifications"] == [(MENTOR, "canarybasic", "2027-05-25")]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: "\ufeff" + text, id="a byte order mark"),
        pytest.param(lambda text: text.replace("\n", "\r\n"), id="Windows line ends"),
        pytest.param(lambda text: text.replace("\n", "\r"), id="old Macintosh line ends"),
        pytest.param(lambda text: text.removesuffix("\n"), id="no line end after the last row"),
        pytest.param(lambda text: text + "\n\n", id="empty lines at the end"),
        pytest.param(
            lambda text: "".join(",".join(reversed(line.split(","))) + "\n" for line in text.splitlines()),
            id="columns in another order",
        ),
        pytest.param(
            lambda text: "".join(",".join(f'"{v}"' for v in line.split(",")) + "\n" for line in text.splitlines()),
            id="every field quoted",
        ),
        pytest.param(lambda text: text.replace(MENTOR, MENTOR.upper()), id="ids in capitals"),
    ],
)
def test_the_same_data_may_be_written_in_other_ways(
    engine: Engine, good: Path, change: Callable[[str], str], tmp_path: Path
) -> None:
    """Otherwise a file saved by another program would be refused, or import a second set of mentors."""
    import_folder(engine, good)
    before = contents(engine)

    import_folder(engine, write(tmp_path / "other", {name: change(text) for name, text in GOOD.items()}))

    assert contents(engine) == before


def test_a_name_may_hold_commas_quotes_line_breaks_backslashes_and_any_script(engine: Engine, good: Path) -> None:
    """Otherwise a person could not be called what they are called."""
    edit(good, "mentors.csv", "Canarysecond", '"Åse ""Ås"" Ødegård, \\N\t東京\r\n😀"')

    import_folder(engine, good)

    assert contents(engine)["mentors"][1][4] == 'Åse "Ås" Ødegård, \\N\t東京\r\n😀'


def test_an_imported_mentor_is_updated_and_keeps_opt_out_and_chapter(engine: Engine, good: Path) -> None:
    """Otherwise an import would write again to a person who had asked to be left alone."""
    import_folder(engine, good)
    chapter = "40000000-0000-4000-8000-000000000004"
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE scenario.peer_mentors SET notifications_opt_out = true, chapter_id = %s WHERE id = %s",
            (chapter, MENTOR),
        )
    others = contents(engine)["mentors"][1:]
    edit(
        good, "mentors.csv", f"{MENTOR},{ORGANISATION},active,Canaryfirst", f"{MENTOR},{OTHER_ORGANISATION},paused,New"
    )
    edit(good, "mentors.csv", "+47 40000001", "")

    import_folder(engine, good)

    assert contents(engine)["mentors"] == [
        (MENTOR, OTHER_ORGANISATION, chapter, "paused", "New Canarylast", "canary.1@mentor.invalid", None, "nn",
         "2020-01-31", True),
        *others,
    ]  # fmt: skip


def test_an_organisation_may_change_its_name_and_time_zone(engine: Engine, good: Path) -> None:
    """Otherwise an organisation that moved would hear of things a day off."""
    import_folder(engine, good)
    edit(good, "organisations.csv", "Canarynorth,Europe/Oslo", "Canarysouth,Africa/Cairo")

    import_folder(engine, good)

    assert contents(engine)["organisations"][0] == (ORGANISATION, "Canarysouth", "Africa/Cairo")


def test_unchanged_rows_are_not_written_again(engine: Engine, good: Path) -> None:
    """Otherwise each nightly import would rewrite every mentor and leave the tables to the vacuum."""
    import_folder(engine, good)
    versions = "SELECT xmin::text FROM scenario.organisations UNION ALL SELECT xmin::text FROM scenario.peer_mentors"
    with engine.connect() as connection:
        before = connection.exec_driver_sql(versions).all()

    import_folder(engine, good)

    with engine.connect() as connection:
        assert connection.exec_driver_sql(versions).all() == before


def test_a_mentor_who_is_already_in_the_database_needs_no_line_of_their_own(engine: Engine, good: Path) -> None:
    """Otherwise a file of new activities would have to repeat every mentor."""
    import_folder(engine, good)
    for name in ("organisations.csv", "mentors.csv", "certifications.csv"):
        (good / name).write_text(GOOD[name].splitlines()[0] + "\n")
    (good / "activities.csv").write_text(f"user_id,activity_type,activity_date\n{MENTOR},canaryvisit,2025-01-01\n")
    before = activities(engine)

    counts = import_folder(engine, good)

    assert counts == {"organisations": 0, "mentors": 0, "activities": 1, "certifications": 0}
    assert activities(engine) - before == Counter({(MENTOR, "canaryvisit", "2025-01-01"): 1})
    assert len(contents(engine)["mentors"]) == 2


@pytest.mark.parametrize(
    ("rows_in_file", "rows_after"),
    [
        pytest.param(1, 2, id="fewer than there are: nothing is taken away"),
        pytest.param(2, 2, id="as many as there are: nothing is added"),
        pytest.param(3, 3, id="one more than there are: one is added"),
        pytest.param(5, 5, id="three more than there are: three are added"),
    ],
)
def test_equal_activities_are_added_up_to_the_number_in_the_file(
    engine: Engine, good: Path, rows_in_file: int, rows_after: int
) -> None:
    """Otherwise a second visit on the same day would be lost, or an imported one be counted again."""
    import_folder(engine, good)
    row = f"{MENTOR},canaryvisit,2024-02-29\n"
    (good / "activities.csv").write_text("user_id,activity_type,activity_date\n" + row * rows_in_file)

    import_folder(engine, good)

    assert activities(engine) == {
        (MENTOR, "canaryvisit", "2024-02-29"): rows_after,
        (OTHER_MENTOR, "canarycall", "2024-03-01"): 1,
    }


def test_a_renewed_certification_is_added_beside_the_old_one(engine: Engine, good: Path) -> None:
    """Otherwise a mentor who renewed would go on being told to renew."""
    import_folder(engine, good)
    with (good / "certifications.csv").open("a") as file:
        file.write(f"{MENTOR},canarybasic,2029-05-25\n")

    import_folder(engine, good)

    assert contents(engine)["certifications"] == [
        (MENTOR, "canarybasic", "2027-05-25"),
        (MENTOR, "canarybasic", "2029-05-25"),
    ]


def test_a_small_file_leaves_the_activities_of_everybody_else_alone(engine: Engine, good: Path) -> None:
    """Otherwise importing one organisation could touch another one's history."""
    import_folder(engine, COMMUNITY)
    before = activities(engine)

    import_folder(engine, good)

    assert activities(engine) - before == Counter(
        {(MENTOR, "canaryvisit", "2024-02-29"): 2, (OTHER_MENTOR, "canarycall", "2024-03-01"): 1}
    )
    assert before - activities(engine) == Counter()


def test_progress_counts_the_rows_of_each_file(engine: Engine, tmp_path: Path) -> None:
    """Otherwise a person would look at a still terminal and stop a good import."""
    folder = shutil.copytree(COMMUNITY, tmp_path / "large")
    lines = (COMMUNITY / "activities.csv").read_text().splitlines(keepends=True)
    (folder / "activities.csv").write_text("".join(lines + lines[1:]))
    seen: list[tuple[str, int]] = []

    import_folder(engine, folder, progress=lambda name, count: seen.append((name, count)))

    assert seen == [
        ("organisations", 3),
        ("mentors", 1390),
        ("activities", 20_000),
        ("activities", 34_850),
        ("certifications", 1390),
    ]


def test_the_tables_are_analysed_after_an_import(engine: Engine) -> None:
    """Otherwise the first run after an import would be planned as if the tables were empty, and take hours."""
    import_folder(engine, COMMUNITY)

    with engine.connect() as connection:
        estimates = connection.exec_driver_sql(
            "SELECT relname, reltuples::int FROM pg_class WHERE relname IN"
            " ('organisations', 'peer_mentors', 'mentor_activities', 'mentor_certifications')"
        ).all()
    assert {row.relname: row.reltuples for row in estimates} == {
        "organisations": 3,
        "peer_mentors": 1390,
        "mentor_activities": 17425,
        "mentor_certifications": 1390,
    }
