"""The one module that is compiled. All else about the package is in pyproject.toml."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("models.purchases", ["models/purchases.pyx"])])
