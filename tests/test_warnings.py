"""What our own code is told not to do any longer fails a test, and what packages tell each other does not."""

import warnings

import pytest

KINDS = DeprecationWarning, FutureWarning


def warn(kind, module):
    """Warn as the code of a module would."""
    warnings.warn_explicit("this goes away", kind, "file.py", 1, module=module)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "module", ["cdn", "cdn.model.head", "cdn_kernels", "cdn_kernels.ops", "benchmarks.steps", __name__]
)
def test_a_deprecation_in_our_code_is_an_error(module, kind):
    with pytest.raises(kind, match="goes away"):
        warn(kind, module)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", ["torch.jit._script", "cdnow", "numpy.testing"])
def test_a_deprecation_in_other_code_is_not(module, kind):
    with warnings.catch_warnings(record=True) as caught:  # pytest.warns would put a filter of its own before
        warn(kind, module)
    assert [w.category for w in caught] == [kind]
