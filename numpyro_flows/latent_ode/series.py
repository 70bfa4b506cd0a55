"""Irregularly observed series: times, values and which of them are there, checked and filled."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from numpyro_flows.arguments import as_numbers, require_all


class Series(NamedTuple):
    """Several series side by side, padded to one length; arrays of NumPy, or of JAX within jit.

    times: sorted along a series where `mask` is true; what is masked has the time of the last one before it.
    values: 0 where masked.
    mask: whether a value is there.
    """

    times: Float[Array, "num length"]
    values: Float[Array, "num length obs_dim"]
    mask: Bool[Array, "num length"]


def observe_series(
    times: ArrayLike, values: ArrayLike, mask: ArrayLike | None, *, obs_dim: int | None, start: float | None
) -> Series:
    """Check series and fill what is masked; arguments and errors are those of `LatentODE.model`.

    Any `obs_dim` will do where it is None. `start` is the earliest time allowed, which fills what is masked before a
    series' first time; where it is None, that is the earliest observed time.
    """
    t, x = _numbers(times, "times"), _numbers(values, "values")
    if x.ndim != 3 or obs_dim not in (None, x.shape[2]):
        raise ValueError(f"values expected the shape (num, length, {obs_dim or 'obs_dim'}), got {x.shape}")
    if 0 in x.shape:
        raise ValueError(f"values expected at least one series, time and coordinate, got the shape {x.shape}")
    there: Any = np.ones(t.shape, bool) if mask is None else _array(mask)
    for name, array in (("times", t), ("mask", there)):
        if array.shape != x.shape[:2]:
            raise ValueError(f"{name} expected the shape {x.shape[:2]} of values, got {array.shape}")
    if there.dtype != bool:
        raise TypeError(f"mask expected booleans, got an array of {there.dtype}")
    traced = any(isinstance(array, Tracer) for array in (t, x, there))
    if not traced:
        _check(t, x, there, start)
    xp: Any = jnp if traced else np
    first = xp.min(xp.where(there, t, np.inf)) if start is None else start
    # what is masked is at a time that any solver may pass through
    t = xp.where(there, t, -np.inf)
    t = jax.lax.cummax(t, 1) if traced else np.maximum.accumulate(t, 1)
    return Series(xp.maximum(t, first), xp.where(there[..., None], x, 0.0), there)


def _check(times: np.ndarray, values: np.ndarray, mask: np.ndarray, start: float | None) -> None:
    require_all(mask.any(1), "at least one value in each series, got none", "series")
    require_all(np.isfinite(np.where(mask, times, 0)).all(1), "times expected finite numbers, got others", "series")
    finite = np.isfinite(np.where(mask[..., None], values, 0)).all((1, 2))
    advice = "mask=np.isfinite(values).all(-1) leaves them out"
    require_all(finite, f"values expected finite numbers, got others ({advice})", "series")
    latest = np.maximum.accumulate(np.where(mask, times, -np.inf), 1)
    in_order = np.where(mask, times == latest, True).all(1)
    require_all(in_order, "times expected sorted along each series, got others", "series")
    if start is not None:
        early = np.where(mask, times, np.inf).min()
        if early < start:
            raise ValueError(f"times expected from {start} on, where the latent path starts, got {early}")


def _numbers(values: ArrayLike, name: str) -> Any:
    array = values if isinstance(values, Tracer) else as_numbers(values, name)
    return array.astype(jnp.result_type(float))


def _array(values: ArrayLike) -> Any:
    return values if isinstance(values, Tracer) else np.asarray(values)
