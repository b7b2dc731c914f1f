"""Whether the C++ kernels can be built here."""

import pytest

from spark_jax.ops import cpu_kernels

NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(bool(cpu_kernels.load()), reason=cpu_kernels.load())
)
