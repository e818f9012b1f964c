"""The sanitiser's lexicon and labels, and names of people that it must not pass.

Belongs here: words. Does not belong here: messages.
"""

from __future__ import annotations

from importlib import resources

from hypothesis import settings

CANARY = "kari.nordmann@example.org"
LEXICON = {
    line.removeprefix("~")
    for line in resources.files("scenario_pipeline").joinpath("lexicon.txt").read_text("utf-8").split("\n")
    if line and not line.startswith("#")
}
NAME_WORDS = {
    line[1:]
    for line in resources.files("scenario_pipeline").joinpath("lexicon.txt").read_text("utf-8").split("\n")
    if line.startswith("~")
}
# The last line are words of the trade as well.
PEOPLE = """
    Kari Ola Bjørn Åse Nordmann Hansen Ødegård Siv Geir Ingrid Magnus Nils Astrid Solveig Håkon Øystein Bjørn-Erik
    Johansen Olsen Kristoffersen Haugen Nguyen Mohammed Aisha Kowalski Jürgen François Łukasz Şahin KARI nordmann bjørn
    Mark May Grant Will Berg Per Odd Even Else Dag Bo Rich Page Field Case Reader
"""
NAMES = PEOPLE.split()

LABELS = {
    *("[cut]", "[email]", "[ip]", "[mac]", "[number]", "[path]", "[secret]", "[token]", "[url]", "[uuid]", "[value]"),
    "[word]",
}

SEARCHED = settings(max_examples=150, deadline=None, database=None)
