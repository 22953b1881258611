"""The group norms of other libraries are called as those libraries document them, and only where they are installed."""

import importlib
import sys

import torch
import torch.nn.functional as F

from benchmarks.peers import group_norms

# What stands in for them: the documented signatures, over PyTorch.
APEX = """
import torch

class GroupNorm(torch.nn.GroupNorm):
    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True, device=None, dtype=None, act=""):
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)

    def forward(self, x):
        assert x.is_contiguous(memory_format=torch.channels_last)
        return super().forward(x)
"""
LIGER = """
import torch

class LigerGroupNormFunction:
    @staticmethod
    def apply(X, weight, bias, num_channels, num_groups, eps):
        assert X.is_contiguous() and X.shape[1] == num_channels and weight.dtype == bias.dtype == X.dtype
        return torch.nn.functional.group_norm(X, num_groups, weight, bias, eps)
"""


def install(folder, name, code):
    package = folder.joinpath(*name.split("."))
    package.parent.mkdir(parents=True)
    for parent in list(package.relative_to(folder).parents)[:-1]:
        (folder / parent / "__init__.py").write_text("")
    package.with_suffix(".py").write_text(code)


def test_what_is_installed_is_called_as_documented(tmp_path, monkeypatch):
    assert group_norms.installed(2) == {}
    install(tmp_path, "apex.contrib.group_norm", APEX)
    install(tmp_path, "liger_kernel.ops.group_norm", LIGER)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    h, gain = torch.randn(3, 8, 5, 4), torch.rand(8)
    norms = group_norms.installed(2)
    assert set(norms) == {"apex GroupNorm", "Liger GroupNorm"}
    for norm in norms.values():
        torch.testing.assert_close(norm(h, gain, 1e-3), F.group_norm(h, 2, gain, None, 1e-3))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("apex", "liger_kernel")]:
        del sys.modules[name]
