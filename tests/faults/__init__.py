"""Faults on a schedule from a seed, on real servers and with real processes, and one oracle that judges every run."""
