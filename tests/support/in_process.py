"""Commands in this process, on real servers: where the command line is not the point, to start it is dear."""

import os
from collections.abc import Mapping

from click.testing import CliRunner, Result

from models.errors import SegmenterError
from streams.cli import cli
from streams.settings import ENV_PREFIX
from tests.support.commands import TEST_SETTINGS


def done(*arguments: str, settings: Mapping[str, str]) -> Result:
    """Run a command to its end; a refusal is the result's exception."""
    dropped = {name: None for name in os.environ if name.startswith(ENV_PREFIX)}
    result = CliRunner().invoke(cli, arguments, env={**dropped, **TEST_SETTINGS, **settings})
    if result.exception is not None and not isinstance(result.exception, SegmenterError | SystemExit):
        raise result.exception
    return result


def output(*arguments: str, settings: Mapping[str, str]) -> str:
    """What a command that must succeed writes to its standard output."""
    result = done(*arguments, settings=settings)
    assert result.exit_code == 0, result.exception or result.stderr
    return result.stdout


def refused(*arguments: str, settings: Mapping[str, str]) -> str:
    """The sentence with which a command refuses."""
    result = done(*arguments, settings=settings)
    assert isinstance(result.exception, SegmenterError), result.output
    return str(result.exception)
