"""What all tests share."""

import doctest
import gc
import itertools
import pathlib

import jax
import jaxtyping
import numpy as np
import pytest
from xdist.scheduler import LoadScopeScheduling

BY_CASE = ("tests/bijections/test_laws.py", "tests/test_recipes.py")  # their last parameter is the name of a case
MOST_MAPS = 40_000  # of the 65,530 memory maps that Linux lets a process have
LOOK_EVERY = 16  # tests, as to count the maps takes 20 ms
MAPS = pathlib.Path("/proc/self/maps")
_ended = itertools.count()


class CaseScheduling(LoadScopeScheduling):
    """All tests of a case or a file go to one worker, one after the other: what they share is compiled once.

    The marker `xdist_group` says the same, but with pytest 9.2 xdist 3.8 does not heed it.
    """

    def _split_scope(self, nodeid: str) -> str:
        return case_of(nodeid)


def case_of(nodeid: str) -> str:
    """What a test shares its compiled functions with: the case that it is about, or its file."""
    file, _, test = nodeid.partition("::")
    return f"{file}::{test.rpartition('-')[2].rpartition('[')[2]}" if file in BY_CASE else file


# The first line of an example that takes long ends in `# doctest: +SLOW`, which the site leaves out: marked `slow`.
SLOW = doctest.register_optionflag("SLOW")


@pytest.hookimpl(tryfirst=True)  # before `-m` deselects
def pytest_collection_modifyitems(items):
    for item in items:
        if isinstance(item, pytest.DoctestItem) and any(SLOW in example.options for example in item.dtest.examples):
            item.add_marker(pytest.mark.slow)
    # whole files first, the many small cases last: so workers end at about the same time
    names = dict.fromkeys(case_of(item.nodeid) for item in items)
    order = {case: ("::" in case, number) for number, case in enumerate(names)}
    items.sort(key=lambda item: order[case_of(item.nodeid)])


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What was imported stays: to look through it for garbage takes a twentieth of the tests' time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True)
def forget():
    """Compiled functions take memory maps, of which a process may have only so many: all tests' are too many."""
    yield
    if next(_ended) % LOOK_EVERY == 0 and MAPS.exists() and MAPS.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def optimized(request):
    """What a test compiles runs for an instant in nearly all of them: `optimized` marks the others."""
    if request.node.get_closest_marker("optimized") is None:
        yield
    else:
        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def unchecked(request):
    """`--jaxtyping-packages=numpyro_flows.bijections,beartype.beartype` checks types of every call; `unchecked` not."""
    unchecked = request.node.get_closest_marker("unchecked") is not None
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_xdist_make_scheduler(config, log):
    return CaseScheduling(config, log)


def pytest_configure(config):
    jax.config.update("jax_disable_most_optimizations", True)  # see `optimized`
    cache = config.rootpath / ".jax_cache"
    if cache.is_dir():  # made by whoever wants to keep what was compiled: a run that fills it takes a tenth longer
        jax.config.update("jax_compilation_cache_dir", str(cache))
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
