"""The modules that are compiled. All else about the package is in pyproject.toml."""

from setuptools import Extension, setup

COMPILED = ("customers", "purchases")

setup(ext_modules=[Extension(f"models.{name}", [f"models/{name}.pyx"]) for name in COMPILED])
