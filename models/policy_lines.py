"""Where things stand in a policy's text: every problem with its line and key, and what is surely not meant."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from models.engines import Condition, DominantPolicy, Grouping, RfmPolicy, RulesPolicy
from models.policy import Policy

#: A key: the names of tables and keys on the way to it, and the places in arrays.
Path = tuple[str | int, ...]

_NOTHING: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART: Final = re.compile(r'[ \t]*("(?:[^"\\]|\\.)*"|\'[^\']*\'|[A-Za-z0-9_-]+)[ \t]*')
_STRING: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'  # the last three quotes end it
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)
_PLAIN: Final = re.compile(r"[^,\]}#\n]+")
_SYNTAX: Final = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
#: The keys by which a dimension names what the rest of the policy must have.
_NAMING: Final = frozenset(("of", "measure", "attribute", "dimension", "is", "not"))


class Problem(NamedTuple):
    """One thing that is wrong, or for a warning doubtful: its line, its key ("" for none), and a sentence."""

    line: int
    key: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.line}: {self.key}: {self.sentence}" if self.key else f"{self.line}: {self.sentence}"


class _Scanner:
    """The line of every key of a TOML text that tomllib has accepted; so only what is valid has to be told apart."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines_upto = [0, *accumulate(char == "\n" for char in text)]
        #: How many tables an array of tables has so far.
        self._tables: dict[Path, int] = {}
        self.lines: dict[Path, int] = {}
        table: Path = ()
        while self._skip():
            if text.startswith("[[", self._at):
                table = self._header(2)
            elif text[self._at] == "[":
                table = self._header(1)
            else:
                self._pair(table)

    @property
    def _line(self) -> int:
        return self._lines_upto[self._at] + 1

    def _skip(self) -> str:
        """Pass blanks, line ends and comments; returns the character after them, "" at the end."""
        self._at = self._match(_NOTHING).end()
        return self._text[self._at : self._at + 1]

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        assert found is not None, f"line {self._line} is no TOML"  # noqa: S101
        return found

    def _key(self) -> Path:
        parts: list[str] = []
        while True:
            found = self._match(_KEY_PART)
            quoted = found[1][0] in "\"'"
            parts.append(tomllib.loads(f"key = {found[1]}")["key"] if quoted else found[1])
            self._at = found.end()
            if self._text[self._at] != ".":
                return tuple(parts)
            self._at += 1

    def _header(self, brackets: int) -> Path:
        line = self._line
        self._at += brackets
        path: Path = ()
        key = self._key()
        self._at += brackets
        for name in key[:-1]:
            path = (*path, name)
            self.lines.setdefault(path, line)
            if path in self._tables:
                path = (*path, self._tables[path] - 1)
        path = (*path, key[-1])
        if brackets == 2:
            place = self._tables[path] = self._tables.get(path, 0) + 1
            self.lines.setdefault(path, line)
            path = (*path, place - 1)
        self.lines[path] = line
        return path

    def _pair(self, table: Path) -> None:
        line, path = self._line, table
        for name in self._key():
            path = (*path, name)
            self.lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: Path) -> None:
        first = self._skip()
        if first in "[{":
            self._at += 1
            place = 0
            while self._skip() not in "]}":
                if first == "{":
                    self._pair(path)
                else:
                    self.lines[(*path, place)] = self._line
                    self._value((*path, place))
                    place += 1
                if self._skip() == ",":
                    self._at += 1
            self._at += 1
        else:
            self._at = self._match(_STRING if first in "\"'" else _PLAIN).end()


def key_lines(text: str) -> Mapping[Path, int]:
    """The line of every key, table and array element of a valid TOML text, counted from 1."""
    return _Scanner(text).lines


def _line_of(lines: Mapping[Path, int], path: Path) -> int:
    """The line of a key, or of the innermost table that it is missing from."""
    return next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), 1)


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def problems(text: str) -> list[Problem]:
    """Everything that keeps a text from being a policy, in the order of lines; nothing if it is one."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        return [_syntax(text, str(error))]
    try:
        Policy.model_validate(values)
    except ValidationError as error:
        lines = key_lines(text)
        found = [problem for each in error.errors() for problem in _problems(each, values, lines)]
        return sorted(dict.fromkeys(found), key=lambda problem: problem.line)
    return []


def _syntax(text: str, message: str) -> Problem:
    found = _SYNTAX.fullmatch(message)
    if found is None:
        return Problem(1, "", f"the policy is not valid TOML: {message}")
    where = "at the end" if found[2] is None else f"column {found[3]}"
    line = text.count("\n") + 1 if found[2] is None else int(found[2])
    return Problem(line, "", f"the policy is not valid TOML: {found[1]} ({where})")


def _problems(error: Any, values: Mapping[str, Any], lines: Mapping[Path, int]) -> Iterator[Problem]:
    """One of pydantic's errors; one that is about several dimensions has a line for each."""
    path: Path = tuple(part for part in error["loc"] if part != "[key]")
    if path[:1] == ("dimensions",) and len(error["loc"]) > 2:
        path = (*path[:2], *path[3:])  # the engine, by which pydantic chose how to read the dimension
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        path = (*path, "engine")
    if path:
        yield Problem(_line_of(lines, path), _dotted(path), _sentence(error, message))
        return
    for line in message.splitlines():
        about = re.fullmatch(r"dimensions\.(\w+): (.*)", line)
        if about is None:
            yield Problem(1, "", line)
        else:
            path = _named(values, ("dimensions", about[1]), about[2])
            yield Problem(_line_of(lines, path), _dotted(path), about[2])


def _sentence(error: Any, message: str) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "is not a setting of this policy; check the spelling"
        case "missing" | "union_tag_not_found":
            return "is required"
        case "union_tag_invalid":
            return f"must be one of {error['ctx']['expected_tags']} (it is {error['ctx']['tag']!r})"
    message = message.replace("Input should be", "must be").replace("String should match", "must match")
    shown = isinstance(error["input"], str | int | float)
    return f"{message} (it is {error['input']!r})" if shown else message


def _named(values: Any, path: Path, sentence: str) -> Path:
    """The key below ``path`` whose value a sentence is about: the last of its words that is any."""
    for part in path:
        values = values[part]
    said = re.findall(r"[\w.]+", re.sub(r"\(.*?\)", "", sentence).partition(";")[0])
    for word in reversed(said):
        for found in _naming(values, path, word):
            return found
    return path


def _naming(value: Any, path: Path, word: str) -> Iterator[Path]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        if key in _NAMING and (each == word or (isinstance(each, list) and word in each)):
            yield (*path, key)
        yield from _naming(each, (*path, key), word)


def warnings(text: str, policy: Policy) -> list[Problem]:
    """What a policy may say and surely does not mean: rules that are never reached, groups of nothing."""
    lines = key_lines(text)
    found: list[tuple[Path, str]] = []
    for name, dimension in policy.dimensions.items():
        path: Path = ("dimensions", name)
        if isinstance(dimension, RulesPolicy):
            found += [((*path, "rules", i), sentence) for i, sentence in _unreached(dimension)]
        elif isinstance(dimension, Grouping | RfmPolicy):
            what = "codes" if isinstance(dimension, RfmPolicy) else "texts"
            found += [
                ((*path, "groups", label), f"has no {what}, so nobody is in it")
                for label, group in dimension.groups.items()
                if not group and label != getattr(dimension, "other", None)
            ]
        if isinstance(dimension, DominantPolicy) and dimension.mixed in (*dimension.groups, dimension.other):
            found.append(((*path, "mixed"), f"{dimension.mixed} is a group too; who has no leader will count there"))
    return [Problem(_line_of(lines, path), _dotted(path), sentence) for path, sentence in found]


def _unreached(dimension: RulesPolicy) -> Iterator[tuple[int, str]]:
    for i, rule in enumerate(dimension.rules):
        for j, earlier in enumerate(dimension.rules[:i]):
            if all(_asked(wide, rule.when) for wide in earlier.when):
                yield i, f"is never reached: rule {j + 1} holds whenever rule {i + 1} does"
                break


def _asked(wide: Condition, narrow: Sequence[Condition]) -> bool:
    """Whether ``wide`` holds whenever all of ``narrow`` do, as far as one of those alone shows."""
    return any(_implies(each, wide) for each in narrow)


def _implies(narrow: Condition, wide: Condition) -> bool:
    if (narrow.measure, narrow.attribute, narrow.dimension) != (wide.measure, wide.attribute, wide.dimension):
        return False
    if narrow.measure is not None:
        low = wide.from_ is None or (narrow.from_ is not None and narrow.from_ >= wide.from_)
        return low and (wide.below is None or (narrow.below is not None and narrow.below <= wide.below))
    fold = str.casefold if narrow.attribute is not None else str
    own, others = ({fold(text) for text in each.is_ or each.not_ or ()} for each in (narrow, wide))
    if narrow.is_ is not None:
        return own <= others if wide.is_ is not None else own.isdisjoint(others)
    return wide.not_ is not None and others <= own
