"""All faults, and all states in which workers are stopped: importing a module registers those in it."""

import importlib
from pathlib import Path

from tests.faults.run import FAULTS

__all__ = ["FAULTS"]

for _module in sorted(Path(__file__).parent.glob("*_faults.py")):
    importlib.import_module(f"tests.faults.{_module.stem}")
importlib.import_module("tests.faults.stop_states")
