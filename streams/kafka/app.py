"""The application for Faust's own command line, ``faust -A streams.kafka.app worker``: built when it is imported."""

from __future__ import annotations

from models.errors import SegmenterError
from streams.wiring import worker_app

try:
    app = worker_app()
except SegmenterError as error:
    raise SystemExit(f"segmenter: {error}") from None
