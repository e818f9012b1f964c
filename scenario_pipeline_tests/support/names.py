"""The sanitiser's lexicon and labels, names of people that it must not pass, and pieces that its rules look for.

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

# What the rules look for, and what they write, in pieces that may join to anything.
COLLIDING = r"""
    Kari page Mark error a e1 x9 s ms 1 12 123456 912 7f1d8a52 93b1 23505 SQLSTATE KeyError é https C:\ [ ]
    [word] [number] [cut] :: : = =( ) " ' % %40 %25 \ \u0040 &#64; @ / // :// . , - _ + token password DETAIL:
    Traceback File psycopg. sqlalchemy. [SQL: [parameters: -----BEGIN -----END
"""
FRAGMENTS = [
    *COLLIDING.split(),
    *" \n\x85\u0301\u200b\u2028\u0669\uff20\ufdfa\ud800",
    *("  ", " is ", 'File "', "912 34", " at "),
]

SEARCHED = settings(max_examples=150, deadline=None, database=None)
