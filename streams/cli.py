"""The command ``segmenter``: what it can do, each command loaded when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from models.errors import SegmenterError

#: command → (module, attribute, what ``segmenter --help`` says of it)
_COMMANDS: Final = {
    "demo": ("streams.commands.demo", "demo", "See it work: everything in one process, on generated customers."),
    "worker": ("streams.commands.worker", "worker", "Run one worker."),
    "stack": ("streams.commands.worker", "stack", "Run a broker and a Redis for a first look."),
    "topics": ("streams.commands.topics", "topics", "Create the topics."),
    "produce": ("streams.commands.produce", "produce", "Put recorded events onto the topics."),
    "replay": ("streams.commands.replay", "replay", "Compute the changes of recorded events, without any server."),
    "changes": ("streams.commands.subscribe", "changes", "Subscribe to segment changes."),
    "dead-letters": ("streams.commands.dead_letters", "dead_letters", "Show what was refused, and why; retry it."),
    "repartition": ("streams.commands.repartition", "repartition", "Move the state to more partitions."),
    "rebuild": ("streams.commands.rebuild", "rebuild", "Build all state again from Kafka."),
    "customer": ("streams.commands.inspect", "customer", "Show what is known about one customer."),
    "segments": ("streams.commands.inspect", "segments", "Show every segment's size and revenue."),
    "clusters": ("streams.commands.clusters", "clusters", "Show the clusters that were learned, or draw them."),
    "policy": ("streams.commands.policy", "policy", "Check, try, apply and show policies."),
    "schemas": ("streams.commands.schemas", "schemas", "Write the JSON Schemas of the topics."),
    "verify": ("streams.commands.verify", "verify", "Compare state and changes with the topics."),
    "export": ("streams.commands.inspect", "export", "Write every customer."),
}


class _Commands(click.Group):
    """Imports a command's module only when that command is used or asked for its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="segmenter", message="%(version)s")
def cli() -> None:
    """Streaming customer segmentation: purchases and signups in, segment changes out.

    Every setting is an option and an environment variable: --broker is SEGMENTER_BROKER.
    """


def main() -> None:
    """Run the command line; an error meant for a person ends it with its sentence and code 1."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        sys.exit(0)
    except SegmenterError as error:
        click.echo(f"segmenter: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
