"""Whether the C++ kernels can be built here."""

import pytest

from spark_jax.ops import cpu_kernels

needs_native = pytest.mark.skipif(bool(cpu_kernels.load()), reason=cpu_kernels.load())
NATIVE = pytest.param("native", marks=needs_native)
