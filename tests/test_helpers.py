"""What tests share is in helpers: nothing is imported from a file of tests, whose tests would run twice."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imports_of_tests(source):
    """Return the full names of what a module imports that is a file of tests, in one, or a test."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if any(part.startswith("test_") for part in name.split("."))]


@pytest.mark.parametrize(
    "source, found",
    [
        ("from tests.kernels.test_passes import norm, gelu", 2),
        ("from benchmarks import test_passes", 1),
        ("def f():\n    import tests.kernels.test_passes as passes", 1),
        ("import torch\nfrom tests.kernels import passes", 0),
    ],
)
def test_imports_of_tests_are_found(source, found):
    assert len(imports_of_tests(source)) == found


def test_nothing_is_imported_from_a_file_of_tests():
    files = [file for folder in ("tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    assert Path(__file__) in files
    found = {str(file.relative_to(ROOT)): names for file in files if (names := imports_of_tests(file.read_text()))}
    assert not found
