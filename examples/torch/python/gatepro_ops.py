# SPDX-License-Identifier: MIT
"""The operators torch.ops.gatepro: from a library, or compiled at first use."""
import os
import pathlib

import torch

_root = pathlib.Path(__file__).resolve().parents[3]


def load(library=None, optimisation="-O2"):
    """Makes torch.ops.gatepro known and returns it.

    library: the shared library that CMake built (target gatepro_torch_ops); by default the one that
    the environment variable GATEPRO_TORCH_OPS names. Without either, torch.utils.cpp_extension
    compiles the operators, once for each version of them: that takes a C++ compiler, ninja, Eigen
    (its folder in GATEPRO_EIGEN, by default /usr/include/eigen3) and a minute.
    """
    library = library or os.environ.get("GATEPRO_TORCH_OPS")
    if library:
        torch.ops.load_library(library)
    elif not hasattr(torch.ops.gatepro, "route"):
        _compile(optimisation)
    return torch.ops.gatepro


def _compile(optimisation):
    from torch.utils import cpp_extension

    eigen = os.environ.get("GATEPRO_EIGEN", "/usr/include/eigen3")
    cpp_extension.load(
        name="gatepro_torch_ops",
        sources=[str(_root / "examples/torch/ops.cpp")],
        extra_include_paths=[str(_root / "include"), eigen],
        # cpp_extension asks for an older standard first; the last one counts. Without -fopenmp
        # at::parallel_for would run on one thread.
        extra_cflags=["-std=c++17", optimisation, "-fopenmp"],
        extra_ldflags=["-fopenmp"],
        is_python_module=False,
    )
