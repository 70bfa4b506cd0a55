"""JAX's settings in other threads: precision and default device hold for the thread that set them."""

from collections.abc import Callable
from functools import wraps

import jax


def with_jax_context[**P, T](function: Callable[P, T]) -> Callable[P, T]:
    """The function, under the present thread's precision and default device in whatever thread it runs."""
    x64, device = jax.config.jax_enable_x64, jax.config.jax_default_device

    @wraps(function)
    def within(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.enable_x64(x64), jax.default_device(device):
            return function(*args, **kwargs)

    return within
