"""Functions compiled in the background, while Python traces the next one."""

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import equinox as eqx
import jax

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.precision import full_precision

# A posterior of everyday size trains in seconds, of which XLA's costliest passes would take some and win nothing. At
# level 1 LLVM aborts on some loops over broadcast loads ("Cannot select", jax 0.12).
OPTIMIZATION_LEVEL = {"xla_backend_optimization_level": 2}
NO_OPTIMIZATION = {"xla_backend_optimization_level": 0}  # for what runs a few times only


class Ahead:
    """`function`, traced at once for arguments like `args` and compiled in the background until it is called."""

    def __init__(self, pool: Executor, function: Callable, *args: Any, options: dict[str, Any] = OPTIMIZATION_LEVEL):
        with full_precision():
            traced = jax.jit(function).trace(*args)
            lowered = traced.lower()
        self.jaxpr = traced.jaxpr
        self._compiled = pool.submit(lowered.compile, options)

    def __call__(self, *args: Any) -> Any:
        return self._compiled.result()(*args)

    def wait(self) -> None:
        """Until the compilation is over."""
        self._compiled.result()


def prototype(make: Callable[..., AbstractBijection], *args: Any) -> AbstractBijection:
    """What `make` would return, with shapes in place of arrays."""
    try:
        with jax.checking_leaks():
            return eqx.filter_eval_shape(make, *args)
    except Exception as error:  # JAX has no narrower class for a leak
        if "Leaked" not in str(error):
            raise
        raise ValueError(
            "the flow expected a recipe that JAX can trace, got one that keeps arrays in a closure: make the "
            "bijection before, and give `lambda key, dim: bijection`"
        ) from error
