"""What the tests of bijections share."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_rank_promotion():
    """An axis that broadcasting adds silently is an error; not for all tests, because NumPyro needs such axes."""
    with jax.numpy_rank_promotion("raise"):
        yield
