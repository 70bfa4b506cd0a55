"""How this library runs a user's model: one thread at a time, at full precision, NaN in place of runtime errors."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from equinox import is_array
from jaxtyping import Array, PyTree

from numpyro_flows._jax import checks_by, raise_if
from numpyro_flows.precision import full_precision

_LOCK = threading.RLock()  # NumPyro's stack of handlers is global: they would affect a model in another thread
_NAN_FOR_ERRORS = jax.make_user_context(False)  # makes JAX cache traces of a run separately


@contextmanager
def model_run() -> Iterator[None]:
    """The context of every run of a model, evaluated or traced; also a decorator.

    - Models run one after the other, even from several threads.
    - Matrix products have full precision.
    - If a runtime check fails (`eqx.error_if`, which the solvers of lineax, optimistix and diffrax use too), its value
      is NaN. An error would end the computation for all points of a batch because of one.

    Equinox has such a mode, but reads it from the environment at import, and gives NaN to the whole batch. So its check
    is replaced while a model runs, only for the thread of that model.

    Example:
        >>> import equinox as eqx
        >>> def model_density(x):
        ...     return eqx.error_if(-x, x > 3, "too far out")
        >>> with model_run():
        ...     jax.vmap(model_density)(jnp.array([1.0, 5.0])).tolist()
        [-1.0, nan]
    """
    with _LOCK, full_precision(), _NAN_FOR_ERRORS(True), checks_by(_nan_if):
        yield


def _nan_if(x: PyTree, pred: Any, index: Any, msgs: Sequence[str], *, on_error: Any) -> PyTree:
    """Equinox's check, with NaN for an error."""
    if isinstance(pred, bool) or not _NAN_FOR_ERRORS.value:  # without arrays, or in a thread without a run
        return raise_if(x, pred, index, msgs, on_error=on_error)
    failed = jnp.any(jnp.asarray(pred))
    return jax.tree.map(lambda leaf: jnp.where(failed, _nan_like(leaf), leaf) if is_array(leaf) else leaf, x)


def _nan_like(leaf: Array) -> Array:
    """NaN, or for integers the largest, as in Equinox's own mode."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.full_like(leaf, np.nan)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return jnp.full_like(leaf, jnp.iinfo(leaf.dtype).max)
    return leaf
