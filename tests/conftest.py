import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# Programs are compiled once for all tests and the processes they start. Before JAX is imported;
# workers of pytest-xdist find the folder in the environment.
PROGRAMS = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    PROGRAMS = tempfile.mkdtemp(prefix="spark_jax_programs_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    # Most of the time of the tests is compilation; their programs run once or twice.
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = flags.strip()


def pytest_unconfigure(config):
    if PROGRAMS is not None:
        shutil.rmtree(PROGRAMS, ignore_errors=True)
