"""Full precision of matrix products: on GPUs XLA's default for float32 is TF32, ten bits of mantissa."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def full_precision() -> Iterator[None]:
    """The context in which matrix products, and their gradients, are traced at full precision; also a decorator.

    Example:
        >>> import jax.numpy as jnp
        >>> with full_precision():
        ...     jaxpr = jax.make_jaxpr(jnp.dot)(jnp.ones(2), jnp.ones(2))
        >>> jaxpr.eqns[0].params["precision"][0].name
        'HIGHEST'
    """
    # a new context each time: JAX's own stores one state, so it cannot be nested
    with jax.default_matmul_precision("highest"):
        yield
