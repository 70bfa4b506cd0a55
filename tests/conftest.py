"""What all tests share."""

import jax
import numpy as np
import pytest
from xdist.scheduler import LoadScopeScheduling

BY_CASE = ("tests/bijections/test_laws.py", "tests/test_recipes.py")  # their last parameter is the name of a case


class CaseScheduling(LoadScopeScheduling):
    """All tests of a case go to one worker, one after the other: what a case compiles is compiled once.

    The marker `xdist_group` says the same, but with pytest 9.2 xdist 3.8 does not heed it.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        return f"{file}::{test.rpartition('-')[2].rpartition('[')[2]}" if file in BY_CASE else nodeid


def pytest_xdist_make_scheduler(config, log):
    return CaseScheduling(config, log)


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
