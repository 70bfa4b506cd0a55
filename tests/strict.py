"""What is an error within tests of the maths: an axis that broadcasting adds silently, and a type that it changes."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion():
    """Not for all tests, because NumPyro needs both."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
