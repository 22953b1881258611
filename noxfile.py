"""Run the tests with every supported version: ``nox`` runs all, ``nox -s "tests(py311-torch2141)"`` one pair.

What follows ``--`` goes to pytest. Every run adds a record to docs/records/versions.jsonl, and writes docs/versions.md
anew. Interpreters must be on the PATH.
"""

from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
PROJECT = nox.project.load_toml("pyproject.toml")["project"]

# Every Python and every torch at least once: a build of torch with CUDA is gigabytes.
# There is no Python 3.14, of which no interpreter was at hand.
PAIRS = [
    ("3.10", "2.11.0"),
    ("3.11", "2.11.0"),
    ("3.11", "2.13.0"),
    ("3.11", "2.14.1"),
    ("3.12", "2.13.0"),
    ("3.13", "2.14.1"),
    ("3.13", "2.15.0"),
]


@nox.session
@nox.parametrize(
    "python, torch", [nox.param(*pair, id="py{}-torch{}".format(*pair).replace(".", "")) for pair in PAIRS]
)
def tests(session, torch):
    """Run the default tests with a Python and a torch, and the newest versions of all else."""
    session.install(*requirements(), f"torch=={torch}")
    recorded_tests(session)


@nox.session(python="3.10")
def lowest(session):
    """Run them with the lowest version of each package that the project asks for."""
    session.install(*(requirement.replace(">=", "==", 1) for requirement in requirements()))
    recorded_tests(session, "--lowest")


def requirements():
    """List what the project and its tests ask for."""
    return [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]


def recorded_tests(session, *options):
    """Run pytest on this tree, of which nothing is installed."""
    build_library(session)
    tree = {"PYTHONPATH": str(Path.cwd())}  # also for the commands that the tests run elsewhere
    session.run("python", "-m", "benchmarks.versions", "run", *options, "--", *session.posargs, env=tree)


def build_library(session):
    """Build the CPU library in place unless it is newer than its sources; it is one for every Python and torch."""
    library = Path("cdn_kernels/_cpu.so")
    changed = max(path.stat().st_mtime for path in Path("csrc").rglob("*"))
    if not library.exists() or library.stat().st_mtime < changed:
        session.install(*nox.project.load_toml("pyproject.toml")["build-system"]["requires"])
        session.run("python", "setup.py", "build_ext", "--inplace")
