"""Options made from the settings: each is also an environment variable, with one description for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from pydantic import SecretStr

from streams.settings import ENV_PREFIX, Settings, load_settings

F = TypeVar("F", bound=Callable[..., Any])


def _shown(default: object) -> str:
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    return "none" if default in (None, "") else str(default)


def settings_options(*names: str) -> Callable[[F], F]:
    """Give a command an option for each of these settings, for all of them if none is named.

    ``broker`` and ``redis`` bring along what says how each is reached.
    """
    wanted = [each for name in names for each in (name, *_WAYS.get(name, ()))]

    def decorate(command: F) -> F:
        for name in reversed(wanted or tuple(Settings.model_fields)):
            field = Settings.model_fields[name]
            command = click.option(
                f"--{name.replace('_', '-')}",
                name,
                envvar=f"{ENV_PREFIX}{name.upper()}",
                show_envvar=True,
                help=f"{field.description}  [default: {_shown(field.default)}]",
            )(command)
        return command

    return decorate


def settings_from(given: dict[str, Any]) -> Settings:
    """Settings from a command's options; what was not given has its default. Raises ConfigurationError."""
    return load_settings({name: value for name, value in given.items() if value is not None})


_WAYS: Final = {
    "broker": (
        "kafka_security",
        "kafka_ca",
        "kafka_certificate",
        "kafka_key",
        "kafka_sasl_mechanism",
        "kafka_login",
        "kafka_password",
        "kafka_password_file",
    ),
    "redis": ("redis_file", "redis_ca", "redis_certificate", "redis_key"),
}

TOPICS = (
    "purchases_topic",
    "signups_topic",
    "erasures_topic",
    "changes_topic",
    "snapshots_topic",
    "dead_letters_topic",
    "samples_topic",
)
