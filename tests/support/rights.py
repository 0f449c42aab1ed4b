"""The rights that docs/SECURITY.md lists, so that tests give exactly these."""

import re
from collections.abc import Sequence

from tests.support.commands import ROOT

_PAGE = ROOT / "docs" / "SECURITY.md"
_ROW = re.compile(r"^\| (\w+) \| (topic|group|transactional_id) \| ([\w.-]+) \| ([A-Z, ]+) \|$", re.MULTILINE)


def kafka_rights(login: str) -> list[tuple[str, str, Sequence[str]]]:
    """What a login may do: kind of resource, its name, operations."""
    rows = _ROW.findall(_PAGE.read_text(encoding="utf-8"))
    found = [(kind, name, operations.split(", ")) for who, kind, name, operations in rows if who == login]
    assert found, login
    return found


def redis_user(password: str, *, cluster: bool = False, login: str = "worker") -> str:
    """The value of redis.conf's directive ``user``, or the arguments of ACL SETUSER."""
    text = _PAGE.read_text(encoding="utf-8")
    (line,) = re.findall(rf"^user ({login} .*)$", text, re.MULTILINE)
    (more,) = re.findall(r"^(\+command .*)$", text, re.MULTILINE)
    return line.replace("<password>", password) + (f" {more}" if cluster else "")
