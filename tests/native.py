"""Whether the C++ kernels can be built here, and pages as each backend wants them."""

import pytest

from spark_jax.ops import cpu_kernels
from spark_jax.ops.backend import GPU_KERNELS

needs_native = pytest.mark.skipif(bool(cpu_kernels.load()), reason=cpu_kernels.load())
NATIVE = pytest.param("native", marks=needs_native)


def arranged(k_PSKC, v_PSKC, backend):
    """Pages of keys and of values as `backend` has them."""
    if backend in GPU_KERNELS:
        return k_PSKC, v_PSKC
    k_PKSC, v_PKSC = k_PSKC.swapaxes(1, 2), v_PSKC.swapaxes(1, 2)
    return (k_PKSC.swapaxes(2, 3) if backend == "native" else k_PKSC), v_PKSC
