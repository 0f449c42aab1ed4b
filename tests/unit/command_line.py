"""Commands in this process: one that must succeed, and one that must refuse."""

import pytest
from click.testing import CliRunner, Result

from streams.cli import cli
from streams.errors import ConfigurationError


def invoke(*args: object, stdin: bytes | None = None) -> Result:
    """A command that must succeed."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def refused(*args: object) -> str:
    """The sentence with which a command refuses."""
    with pytest.raises(ConfigurationError) as told:
        invoke(*args)
    return str(told.value)
