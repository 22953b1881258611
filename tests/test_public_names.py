"""Public names stay what they are, whatever else is imported, and every command runs by ``python -m``."""

import pkgutil
import subprocess
import sys
import types

import pytest

import cdn
from tests.in_process import run_module

COMMANDS = ("train", "evaluate", "denoise", "classify", "certify")
EVERYTHING = """
import importlib, inspect, pkgutil, types
import cdn
before = {name: getattr(cdn, name) for name in cdn.__all__}
for module in pkgutil.walk_packages(cdn.__path__, "cdn."):
    importlib.import_module(module.name)
import cdn.certify, cdn.denoise
from cdn import certify, denoise
assert denoise is cdn.denoise is before["denoise"] and certify is cdn.certify is before["certify"]
assert all(getattr(cdn, name) is value for name, value in before.items())
assert all(type(function) is types.FunctionType for function in (cdn.denoise, cdn.certify))
assert not [name for name in cdn.__all__ if inspect.ismodule(getattr(cdn, name))]
"""


def test_no_submodule_takes_the_name_of_a_function():
    subprocess.run([sys.executable, "-c", EVERYTHING], check=True)


def test_no_module_is_callable():
    names = [module.name for module in pkgutil.walk_packages(cdn.__path__, "cdn.")]
    assert len(names) > 100
    for name in names:
        __import__(name)
        found = sys.modules[name]
        assert type(found) in (types.ModuleType, types.FunctionType) and (type(found) is types.ModuleType) == (
            name not in ("cdn.denoise", "cdn.certify")
        )


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_run_also_where_they_were_imported_before(name):
    __import__(f"cdn.{name}")
    outcome = run_module(f"cdn.{name}", "--help")
    assert outcome.status == 0 and outcome.out.startswith(f"usage: python -m cdn.{name}")
