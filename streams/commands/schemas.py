"""``schemas``: the JSON Schemas of every topic's values."""

from __future__ import annotations

import json
from pathlib import Path

import click

from models.schemas import schemas as every_schema
from streams.errors import ConfigurationError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("docs/schemas"))
def schemas(folder: Path) -> None:
    """Write the JSON Schema of each topic's values into FOLDER (docs/schemas if not given)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for topic, schema in every_schema().items():
            path = folder / f"{topic}.schema.json"
            path.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            click.echo(str(path))
    except OSError as error:
        raise ConfigurationError(f"cannot write {folder}: {error.strerror}") from None
