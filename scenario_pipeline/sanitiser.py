"""Makes any error message fit to be logged: one line, at most 500 characters, nobody's data in it.

Belongs here: what is cut off, what becomes a marker, and the rule that a word passes only if `lexicon.txt` holds it.
Does not belong here: telling failures apart (`errors`), or any other field of a log entry.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from importlib import resources

MAX_INPUT = 512
MAX_OUTPUT = 500

_EMPTY = "no message"
_WITHHELD = "message withheld"
# Two that change something, as a value inside a value needs, and one that finds nothing left to change.
_MAX_PASSES = 3
# Pieces that are neither words nor markers cost most; few texts have as many that say something.
_MAX_PIECES = 60
# Messages known to be fixed points, since one fault often says the same of many mentors. Only what was sanitised is
# kept: remembering the input would keep people's data in memory.
_MAX_CLEAN = 1000
_clean: set[str] = set()


class OwnWords(str):
    """A sentence of this project that may be logged as it is: nothing in it is foreign, or that part was sanitised."""

    __slots__ = ()


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def own_words(sentence: str) -> OwnWords:
    """Return one of our own sentences as what it is: one line of 1 to 500 characters."""
    return OwnWords(_CONTROL.sub(" ", sentence).strip()[:MAX_OUTPUT].strip() or _EMPTY)


def sanitise(message: object) -> str:
    """Reduce a message to what may be logged: the classification and the rest that names nobody.

    The input is bounded before any pattern sees it, which is what bounds the time. The result is a fixed point of all
    rules, so that no rule can uncover what another one hides, and sanitising twice equals sanitising once.

    Args:
        message: text, bytes, an exception or any other object; its `__str__` may fail.

    Returns:
        One line of 1 to 500 printable ASCII characters; `[label]` stands where something was taken out.
    """
    if type(message) is str and message in _clean:
        return message
    text = _bounded(_as_text(message))
    scrutiny = _Scrutiny()
    for _ in range(_MAX_PASSES):
        once = _pass(text, scrutiny)
        if once == text:
            if len(_clean) < _MAX_CLEAN:
                _clean.add(once)
            return once
        text = once
    return _WITHHELD


def forget() -> None:
    """Forget the messages that are known to be clean, so that a measurement or a test meets all rules."""
    _clean.clear()


def _as_text(message: object) -> str:
    """Turn anything into text; bytes are read as UTF-8."""
    if isinstance(message, bytes | bytearray):
        return bytes(message[: 4 * MAX_INPUT]).decode("utf-8", "replace")
    try:
        return str(message)
    except Exception:  # noqa: BLE001 - the log entry about a failure must not fail because of the failure's __str__
        return _WITHHELD


def _bounded(text: str) -> str:
    """Cut to 512 characters, without the token that the cut tore and without digits it may have torn off a number.

    A torn national identity number or key would no longer have the shape its rule looks for.
    """
    # str's own method: a subclass could override slicing, and its result would not be a plain str.
    head = str.__getitem__(text, slice(0, MAX_INPUT + 1))
    if len(head) <= MAX_INPUT:
        return head
    whole = head[: max(head.rfind(space) for space in " \n\t") + 1]
    return whole.rstrip("0123456789 \t\n+-./(),:;_") + " [cut]"


# What the rules write. They are read back unchanged, which is what makes sanitising twice harmless.
_LABELS = "cut|email|ip|mac|number|path|secret|token|url|uuid|value|word"

# What follows these is a stack trace, a statement or a row. These patterns, like those of credentials and identities,
# are held against the text in lower case, and each branch begins with a letter of its own: a search that has to ignore
# case, or to look back first, takes three times as long.
_CUT = re.compile(
    r"""traceback\b|stack\ trace\s*:|input_value\b|failing\ row|details?\s*:
    |context(?<!\wcontext):|hint(?<!\whint):|query(?<!\wquery):|statement(?<!\wstatement):|line(?<!\wline)\ \d+:""",
    re.VERBOSE,
)
_CUT_FILE = re.compile(r"File\s+\"")
_CUT_BRACKET = re.compile(r"\[\s*(?:sql|parameters?)\b", re.IGNORECASE)
_STACK_LINE = re.compile(r"\n\s{0,80}at\s")
_PEM = re.compile(r"-----BEGIN.*?(?:-----END[^-]*-----|$)")
# Quotation marks and angle brackets end a URL, so that the text after a quoted one is kept.
_URL = re.compile(r"[A-Za-z0-9+.-]{0,30}://[^\s\"'<>]*")

_ESCAPE = re.compile(
    r"""%(?P<percent>[0-9a-f]{2}(?:%[0-9a-f]{2})*) | &\#x(?P<entity>[0-9a-f]{1,6}); | &\#(?P<decimal>[0-9]{1,7});
    | \\\\{0,3}(?:u\{?(?P<u>[0-9a-f]{4})\}? | (?-i:U)(?P<long>[0-9a-f]{8}) | x(?P<x>[0-9a-f]{2}) | (?P<quote>["']))""",
    re.IGNORECASE | re.VERBOSE,
)

_CREDENTIAL_WORDS = (
    *("passw", "pwd", "secret", "token", "apikey", "api_key", "api-key", "api key", "credential", "auth", "session"),
    *("cookie", "_key", "-key", "sid", "jwt", "otp", "pin", "dsn"),
)
_IDENTITY_WORDS = ("user", "name", "login", "mail", "phone", "mobile", "tlf", "fnr", "ssn", "birth", "born", "address")
_SECRET = re.compile(
    r"""((?:passw(?:or)?d|pwd|secret|token|api[ _-]?key|credential|auth|session|cookie|_key|-key
          |s(?<![a-z]s)id|j(?<![a-z]j)wt|o(?<![a-z]o)tp|p(?<![a-z]p)in|d(?<![a-z]d)sn)
        [\w.-]{0,40} ["']? (?:\s{0,3}(?:=>?|:=?)\s{0,3}|\s{1,3}is\s{1,3}))
    (\[secret\]|"[^"]*(?:"|$)|'[^']*(?:'|$)|(?:(?:bearer|basic)\s+)?\S+)""",
    re.VERBOSE,
)
_IDENTITY = re.compile(
    r"""((?:user|name|login|mail|phone|mobile|tlf|fnr|ssn|birth|born|address)
        [\w.-]{0,40} (?:[ ]id)? ["']? \s{0,3}=>?\s{0,3})
    (\[value\]|"[^"]*(?:"|$)|'[^']*(?:'|$)|\S+)""",
    re.VERBOSE,
)
# "token: expired" and "password is required" say what is wrong; everything else after the sign is the secret.
_STATES = frozenset(
    {"a", "absent", "an", "cannot", "closed", "could", "empty", "expired", "failed", "invalid", "is", "malformed"}
    | {"missing", "no", "not", "null", "rejected", "required", "revoked", "too", "unable", "unknown", "unset", "wrong"}
)
_ASSIGNED_ROW = re.compile(r"=\s*\([^)]*\)?")
# The lookbehind stands after the first character, so that the search can jump from one quotation mark to the next.
_QUOTED = re.compile(r"\"([^\"]*)(?:\"|$)")
_APOSTROPHED = re.compile(r"'(?<!\w')((?:[^']+|'(?=\w))*)(?:'(?!\w)|$)")
_SPEECH = re.compile(r"\"(?:message|msg|error|reason|title|error_description)\"\s?:\s?$")
# An identifier, a marker, or a status line as HTTP clients quote it.
_IDENTIFIER = re.compile(rf"[\w.\-$*%@+]*|\[(?:{_LABELS})\]|[1-5]\d\d(?: [A-Za-z]+){{1,5}}")

_CLOCK = re.compile(r"\d\d:\d\d:\d\d")
# Bounded groups: a longer run of hexadecimal digits belongs to the rule for keys.
_COLONS = re.compile(r"(?=:{0,4}[0-9A-Fa-f])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,}")
_DIGIT = re.compile(r"[0-9]")
# A key without a digit before a letter is left to the words, which know none of its parts.
_HEXADECIMAL = re.compile(r"[0-9][-_.]?[A-Fa-f]")
# Below four digits without a letter between them there is no number worth hiding; words hide the rest.
_DENSE = re.compile(r"[0-9](?:[^A-Za-z]{0,3}[0-9]){3}")
# No \b anywhere: values stand glued to words and to each other. Each pattern begins with one set of characters and
# looks back only after it, which is several times faster to search for.
_KEYS = re.compile(
    r"""[0-9A-Fa-f](?:
     (?P<uuid>(?:[-_.]{0,2}[0-9A-Fa-f]){31,}|[0-9A-Fa-f]{3,11}[\W_]{1,3}(?:[0-9A-Fa-f]{4,12}[\W_]{1,3}){2,}[0-9A-Fa-f]{4,12})
    |(?P<mac>[0-9A-Fa-f](?:-[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{3}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}))""",
    re.VERBOSE,
)
_ACCOUNT = re.compile(r"[A-Z][A-Z]\d\d(?:[ -]?[A-Z0-9]{4}){3,}(?:[ -]?[A-Z0-9]{1,3})?")
_NUMBERS = re.compile(
    r"""[0-9](?:
     (?P<ip>(?<!\d\d)\d{0,2}(?:[.\-_]\d{1,3}){3}(?!\d))
    |(?P<number>\d{3}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?
      |(?:[ .\-/_()+,:;*]{0,3}\d){6,}
      |\d{0,9}\.\d{4,}
      |(?<!\d\d)(?:(?<=[1-9])|(?<=0)[1-9]|(?<=[12])\d|(?<=3)[01])[./-](?:0?[1-9]|1[0-2])[./-]\d\d(?!\d)))""",
    re.VERBOSE | re.ASCII,
)

# A run goes as a whole if one part of it is unknown: half a key or half a name is still somebody's.
_RUN = re.compile(rf"(?:[^\s,;:()\[\]{{}}\"'<>|=!?]+|\[(?:{_LABELS})\])+")
_SEPARATORS = ".,;:()[]{}\"'<>|=!?"
_MARKERS = frozenset(f"[{label}]" for label in _LABELS.split("|"))
_MARKER = re.compile(rf"\[(?:{_LABELS})\]")
_PARTS = re.compile(r"[A-Za-z0-9]+|[^\x00-\x7f]")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# PGRST116, utf8, 30s. One letter with digits is more often a piece of a key than a word.
_LETTERS_AND_DIGITS = re.compile(r"([A-Za-z]{2,})\d{1,4}|\d{1,4}([A-Za-z]{2,})|\d{1,6}(?:ms|s|kb|mb|gb)")
# The classes of the PostgreSQL manual, appendix A, and PostgREST's PT.
_SQLSTATE = re.compile(r"(?:0[0-9ABFLPZ]|2[0-8BDF]|3[489BDF]|4[024]|5[34578]|72|F0|HV|P0|PT|XX)[0-9A-Z]{3}")
_STATE_FOLLOWS = re.compile(r"(?:sqlstate\W{1,2}|\"code\":\")$", re.IGNORECASE)
_UNITS = frozenset({"ms", "s", "seconds", "milliseconds", "bytes", "rows"})
_SAME_MARKERS = re.compile(r"(\[[a-z]+\])(?:\s*\1)+")


def _read_lexicon() -> tuple[frozenset[str], frozenset[str]]:
    """Read the words that pass, and those of them that are names too (marked ~)."""
    text = resources.files("scenario_pipeline").joinpath("lexicon.txt").read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if line and not line.startswith("#")]
    names = frozenset(line[1:] for line in lines if line.startswith("~"))
    return frozenset(line for line in lines if not line.startswith("~")), names


_WORDS, _NAME_WORDS = _read_lexicon()


class _Scrutiny:
    """What one call has looked at closely, so that it looks once at each piece and at `_MAX_PIECES` altogether.

    One account for all passes: else a text could stay as it is here and be cut when it is sanitised again.
    """

    __slots__ = ("left", "passed")

    def __init__(self) -> None:
        self.left = _MAX_PIECES
        self.passed: set[str] = set()

    def affords(self, chunk: str) -> bool:
        """Whether the pieces of `chunk` may still be looked at; the text is cut before the first that may not."""
        self.left -= len(_RUN.findall(chunk)) or 1
        return self.left >= 0


def _pass(text: str, scrutiny: _Scrutiny) -> str:
    """Apply every rule once. The order matters: whole-message rules first, single words last."""
    if "\n" in text and (stack := _STACK_LINE.search(text)):
        text = text[: stack.start()] + " [cut]"
    text = _plain(text)
    # URLs go before escapes are decoded: a decoded %20 would end the URL in the middle of a name.
    if "://" in text:
        text = _URL.sub("[url]", text)
    if "%" in text or "\\" in text or "&#" in text:
        text = _plain(_ESCAPE.sub(_decode, text))
    if "-----BEGIN" in text:
        text = _PEM.sub("[secret]", text)
    lower = text.lower()
    if cut := _CUT.search(lower):
        text = text[: cut.start()] + " [cut]"
    if cut := _CUT_FILE.search(text):
        text = text[: cut.start()] + " [cut]"
    if "[" in text and (cut := _CUT_BRACKET.search(text)):
        text = text[: cut.start()] + " [cut]"
    if "=" in text:
        text = _ASSIGNED_ROW.sub("=([value])", text)
    if ("=" in text or ":" in text or " is " in lower) and _mentions(lower, _CREDENTIAL_WORDS):
        text = _replace_assigned(_SECRET, text, "[secret]")
    if "=" in text and _mentions(lower, _IDENTITY_WORDS):
        text = _replace_assigned(_IDENTITY, text, "[value]")
    if '"' in text:
        text = _QUOTED.sub(_replace_quoted, text)
    if "'" in text:
        text = _APOSTROPHED.sub(_replace_quoted, text)
    if "::" in text or text.count(":") > 2:
        text = _COLONS.sub(_replace_colons, text)
    if _HEXADECIMAL.search(text):
        text = _KEYS.sub(_label, text)
    if _DENSE.search(text):
        text = _ACCOUNT.sub("[number]", text)
        text = _NUMBERS.sub(_label, text)
    text = _only_known_words(text, scrutiny)
    if "] [" in text or "][" in text:
        text = _SAME_MARKERS.sub(r"\1", text)
    if len(text) > MAX_OUTPUT:
        text = text[: MAX_OUTPUT - len(" [cut]")].rpartition(" ")[0] + " [cut]"
    return text or _EMPTY


def _mentions(text: str, words: tuple[str, ...]) -> bool:
    """Whether any of the words stands in the text: the cheap question before a slow pattern."""
    for word in words:  # noqa: SIM110 - any() with a generator takes three times as long, once per rule and message
        if word in text:
            return True
    return False


def _plain(text: str) -> str:
    """Fold look-alikes to ASCII, drop what is invisible, and make every control character a space."""
    if not text.isascii():
        # Some characters stand for eighteen others, hence the second bound.
        text = _bounded(
            "".join([char if char < "\x80" else _fold(char) for char in unicodedata.normalize("NFC", text)])
        )
    if not text.isprintable():
        text = "".join([char if char.isprintable() else " " for char in text])
    return text


@lru_cache(maxsize=4096)
def _fold(char: str) -> str:
    """Give what one non-ASCII character stands for in ASCII, or one letter that no lexicon holds."""
    return "".join([_stand_in(part) for part in unicodedata.normalize("NFKC", char)])


def _stand_in(char: str) -> str:
    if char.isascii():
        return char
    digit = unicodedata.digit(char, None)
    if digit is not None:
        return str(digit)
    category = unicodedata.category(char)
    if category in {"Cf", "Cs", "Co", "Cn", "Mn", "Me"}:
        return ""
    if category[0] in "ZC":
        return " "
    if category == "Pd" or char == "\N{MINUS SIGN}":
        return "-"
    if category in {"Pi", "Pf"} or char in "\u201a\u201e":
        return "'" if char in "\u2018\u2019\u201a\u201b\u2039\u203a" else '"'
    # One letter for all: some others change their length in lower case.
    return "." if category[0] in "PS" else "\N{LATIN SMALL LETTER E WITH ACUTE}"


def _decode(match: re.Match[str]) -> str:
    r"""Decode one escape: %40, \u0040, \x40, &#64; or an escaped quotation mark."""
    kind, code = str(match.lastgroup), match[str(match.lastgroup)]
    if kind == "quote":
        return code
    if kind == "percent":
        return bytes.fromhex(code.replace("%", "")).decode("utf-8", "replace")
    number = int(code, 10 if kind == "decimal" else 16)
    return chr(number) if number <= 0x10FFFF else " "


def _replace_assigned(pattern: re.Pattern[str], text: str, label: str) -> str:
    """Replace what is assigned to a name of the pattern's, unless it only says what is wrong with a credential."""
    pieces, at = [], 0
    for match in pattern.finditer(text.lower()):
        if pattern is _SECRET and "=" not in match[1] and match[2].rstrip(".,;)") in _STATES:
            continue
        pieces += [text[at : match.end(1)], label]
        at = match.end()
    return "".join([*pieces, text[at:]]) if pieces else text


def _replace_quoted(match: re.Match[str]) -> str:
    """Replace quoted text of several words: it is a value; one word is an identifier and left to the lexicon."""
    if _IDENTIFIER.fullmatch(match[1]) or _SPEECH.search(match.string, max(match.start() - 24, 0), match.start()):
        return match[0]
    mark = match[0][0]
    return f"{mark}[value]{mark}"


def _replace_colons(match: re.Match[str]) -> str:
    """Tell IPv6 and MAC addresses from times of day and from the colons of std::io::Error."""
    text, string = match[0], match.string
    before, after = string[max(match.start() - 1, 0) : match.start()], string[match.end() : match.end() + 1]
    is_glued = before.isalnum() or after.isalnum()
    if _CLOCK.fullmatch(text) and not is_glued:
        return text
    groups = text.strip(":")
    if "::" in text:
        is_address = bool(groups) and (not groups.isalpha() or len(groups) > 3 or not is_glued)
    else:
        is_address = text.count(":") > 2
    return "[ip]" if is_address else text


def _label(match: re.Match[str]) -> str:
    return f"[{match.lastgroup}]"


def _only_known_words(text: str, scrutiny: _Scrutiny) -> str:
    """Apply the lexicon: whatever it does not know leaves as a marker; blanks are made single."""
    chunks = text.split()
    for i, chunk in enumerate(chunks):
        if chunk in _MARKERS or chunk in scrutiny.passed or chunk.strip(_SEPARATORS).lower() in _WORDS:
            continue
        if not scrutiny.affords(chunk):
            chunks[i:] = ["[cut]"]
            break
        if len(chunk) > 4 and (
            (i > 0 and chunks[i - 1].strip(_SEPARATORS).upper() == "SQLSTATE")
            or (i + 1 < len(chunks) and chunks[i + 1].rstrip(".,;:)") in _UNITS)
        ):
            chunks[i] = _RUN.sub(_replace_counted_run, chunk)
            continue
        chunks[i] = _RUN.sub(_replace_run, chunk)
        if chunks[i] == chunk:
            scrutiny.passed.add(chunk)
    return " ".join(chunks)


def _replace_counted_run(match: re.Match[str]) -> str:
    """Let five or six digits pass where they are a SQLSTATE or count something."""
    run = match[0].rstrip(".")
    return match[0] if run.isdigit() and len(run) <= 6 else _replace_run(match)


def _replace_run(match: re.Match[str]) -> str:
    """Let a run of characters without blanks pass if all its words are known; label it otherwise."""
    run = match[0]
    core = run.rstrip(".")
    if _is_known(core):
        return run
    if core.isalnum():
        if core.isalpha():
            return "[word]"
        if not core.isdigit():
            return run if _SQLSTATE.fullmatch(core) else "[token]"
        is_state = _SQLSTATE.fullmatch(core) and _STATE_FOLLOWS.search(match.string, 0, match.start())
        return run if is_state else "[number]"
    if "[" in run:
        # A marker glued to letters was part of a longer value: the marker stands for all of it.
        return run if not _PARTS.search(_MARKER.sub("", run)) else _MARKER.findall(run)[0]
    parts = _PARTS.findall(run)
    if not parts:
        return run
    if "@" in run:
        return "[email]"
    if "\\" in run or run[0] in "/~" or (run.count("/") > 1 and not run.replace("/", "").isdigit()):
        return "[path]"
    if all(map(_is_known, parts)):
        return run
    if "/" in run:
        return "[path]"
    if _DIGIT.search(run):
        return "[number]" if all(part.isdigit() for part in parts) else "[token]"
    # "psycopg.errors.UniqueViolation" names a class; the package it lives in is of no use here.
    last = core.rpartition(".")[2]
    return last if last != core and last.isalpha() and last.isascii() and _is_camel(last) else "[word]"


def _is_known(part: str) -> bool:
    """Whether a word, a short number or an identifier names nobody."""
    lower = part.lower()
    if lower in _WORDS:
        return True
    if lower in _NAME_WORDS:
        return part.islower() or part.isupper()
    if "_" in part:
        return all(word in _WORDS or _is_known(word) for word in part.split("_"))
    if not part or part.isdigit():
        return len(part) <= 4
    if part.isalpha():
        return part.isascii() and not part.islower() and not part.isupper() and _is_camel(part)
    if mixed := _LETTERS_AND_DIGITS.fullmatch(part):
        letters = mixed[1] or mixed[2]
        return letters is None or letters.lower() in _WORDS
    return False


def _is_camel(part: str) -> bool:
    """Whether a CamelCase name consists of known words, at least one of which is nobody's name."""
    words = [word.lower() for word in _CAMEL.findall(part)]
    return (
        len(words) > 1
        and all(len(word) > 1 and (word in _WORDS or word in _NAME_WORDS) for word in words)
        and any(word in _WORDS for word in words)
    )
