"""What all tests share."""

import jax
import numpy as np
import pytest


def pytest_configure(config):
    # a second run of the tests takes from here what the first one compiled
    jax.config.update("jax_compilation_cache_dir", str(config.rootpath / ".jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Runs a test in single and in double precision: what JAX makes within it has this type."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def x64():
    """Runs a test in double precision."""
    with jax.enable_x64(True):
        yield
