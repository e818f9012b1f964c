"""How scenarios are found, named and selected."""

from __future__ import annotations

import pytest

from scenario_pipeline.errors import UserError
from scenario_pipeline.scenarios import Scenario, registry, select_scenarios
from scenario_pipeline_tests.support.runs import ALL_SCENARIOS


def test_the_three_built_in_scenarios_are_found() -> None:
    """A scenario that is not found never sends, and nobody notices."""
    found = registry()

    assert list(found) == ["certification_expiry", "inactivity", "milestone"]
    assert [scenario.scenario_type for scenario in found.values()] == list(found)
    assert all(scenario.description.endswith(".") for scenario in found.values())


@pytest.mark.parametrize(
    ("names", "selected"),
    [
        ([], ALL_SCENARIOS),
        (["milestone"], ("milestone",)),
        (["milestone", "inactivity", "milestone"], ALL_SCENARIOS[1:]),
    ],
)
def test_scenarios_are_selected_by_name_once_each_and_sorted(names: list[str], selected: tuple[str, ...]) -> None:
    """The same set in another order must be the same kind of run, or the next run does not resume it."""
    assert select_scenarios(names) == selected


@pytest.mark.parametrize("name", ["birthday", "", "Inactivity", "'); DROP TABLE scenario.peer_mentors; --", "x" * 5000])
def test_an_unknown_scenario_is_refused_with_the_list_of_those_that_exist(name: str) -> None:
    """A typing error must not turn into a run that sends nothing."""
    with pytest.raises(UserError) as caught:
        select_scenarios(["inactivity", name])

    assert str(caught.value) == (
        f"There is no scenario {name[:63]!r}: the installed ones are certification_expiry, inactivity, milestone."
    )
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["", "Birthday", "1st", "a-b", "a b", "æ", "a" * 64, "a\n", "a;b"])
def test_a_scenario_with_a_bad_name_cannot_be_made(name: str) -> None:
    """The name stands in tables, tags and events; the database would refuse it in the middle of a run."""
    with pytest.raises(ValueError, match="is not a scenario type"):
        Scenario(name, "A description.", [1], 7, 1, registry()["inactivity"].matches)


@pytest.mark.parametrize("name", ["a", "birthday_2", "a" * 63])
def test_a_scenario_with_a_good_name_can_be_made(name: str) -> None:
    """The negative twin: the longest and the shortest name are allowed."""
    assert Scenario(name, "A description.", [1], 7, 1, registry()["inactivity"].matches).scenario_type == name
