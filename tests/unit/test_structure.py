"""The structure: the arrows between modules point where they must, and no file grows beyond what can be read."""

import ast
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 400


SOURCES = [path for package in ("models", "streams") for path in sorted((ROOT / package).rglob("*.py"))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_import_contracts_hold() -> None:
    """The core is pure, and the arrows in core and shell run one way (pyproject.toml)."""
    if not find_spec("importlinter"):
        pytest.skip("import-linter is not installed: pip install import-linter")
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_file_is_too_long(path: Path) -> None:
    """Who changes a file can have read it."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_file_says_what_it_is(path: Path) -> None:
    """Each module begins with a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_only_one_module_reads_the_environment() -> None:
    """Settings are where every variable is named and checked."""
    for path in SOURCES:
        if name(path) == "streams/settings.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("environ", "getenv"), f"{name(path)}, line {node.lineno}"


def test_every_package_is_distributed() -> None:
    """A folder with modules that pyproject.toml does not list would be missing from the wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({name(path.parent).replace("/", ".") for path in SOURCES})
    assert not [folder for folder in {path.parent for path in SOURCES} if not (folder / "__init__.py").exists()]


def test_a_core_module_imports_no_clock() -> None:
    """numpy's and pandas' ways to ask for the time, which an import contract does not see."""
    for path in SOURCES:
        if not name(path).startswith("models/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in ("now", "today"):
                raise AssertionError(f"{name(path)}, line {node.lineno}")
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("now", "utcnow", "today", "random"), f"{name(path)}, line {node.lineno}"
