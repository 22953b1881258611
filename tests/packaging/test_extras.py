"""No extra changes a torch or a triton that is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.packaging.project import EXTRAS, PROJECT

# What each torch with CUDA asks for, as its metadata says; and one that nobody has seen.
INSTALLED = {"2.11.0": "3.6.0", "2.13.0": "3.7.1", "2.14.1": "3.8.0", "2.15.0": "3.9.0", "9.0.0": "9.0.0"}


def changed(requirements, torch, triton):
    """Return those of some requirements that a torch and a triton do not meet."""
    installed = {"torch": torch, "triton": triton}
    parsed = [Requirement(r) for r in requirements]
    return [str(r) for r in parsed if r.name.lower() in installed and installed[r.name.lower()] not in r.specifier]


def test_a_requirement_that_is_not_met_is_found():
    assert changed(["triton==3.6.*", "torch>=2.11", "numpy<1"], "2.14.1", "3.8.0") == ["triton==3.6.*"]


@pytest.mark.parametrize("torch", INSTALLED)
@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_take_the_torch_and_the_triton_that_are_there(extra, torch):
    assert changed([*PROJECT["dependencies"], *EXTRAS[extra]], torch, INSTALLED[torch]) == []


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The Python of an environment where pip sees torch 2.14.1 and its triton: their metadata, and nothing of them."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    for name, version, needs in (
        ("torch", "2.14.1", "Requires-Dist: triton<3.9.dev0,>=3.8.0\n"),
        ("triton", "3.8.0", ""),
    ):
        about = packages / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        (about / "RECORD").write_text(f"{about.name}/METADATA,,\n{about.name}/RECORD,,\n{about.name}/INSTALLER,,\n")
        (about / "INSTALLER").write_text("pip\n")
    return python


def would_install(python, *requirements):
    """Return the names of what pip would install; it asks the index."""
    command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return {item["metadata"]["name"].lower() for item in json.loads(done.stdout)["install"]}


@pytest.mark.slow
def test_pip_would_replace_what_does_not_fit(environment):
    assert "triton" in would_install(environment, "triton==3.6.*")


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_pip_leaves_torch_and_triton_alone(environment, extra):
    found = would_install(environment, *PROJECT["dependencies"], *EXTRAS[extra])
    assert found and not found & {"torch", "triton"}
