"""Whether the C++ kernels can be built here, and pages as they want them."""

import pytest

from spark_jax.ops import cpu_kernels
from spark_jax.ops.paged_attention import BY_TOKEN

needs_native = pytest.mark.skipif(bool(cpu_kernels.load()), reason=cpu_kernels.load())
NATIVE = pytest.param("native", marks=needs_native)


def arranged(k_PSKC, v_PSKC, backend):
    """Pages of keys and of values as `backend` has them."""
    if backend in BY_TOKEN:
        return k_PSKC, v_PSKC
    return k_PSKC.transpose(0, 2, 3, 1), v_PSKC.swapaxes(1, 2)
