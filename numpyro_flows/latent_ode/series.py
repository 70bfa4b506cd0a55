"""Irregularly observed series: times, values, which of them are there, and covariates, checked and filled."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from numpyro_flows.arguments import as_numbers, described, require_all, require_two_times

Times = ArrayLike | Sequence[float]


class Series(NamedTuple):
    """Several series side by side, padded to one length; arrays of NumPy, or of JAX within jit.

    times: sorted along a series where any feature is there; elsewhere the time of the last one before it.
    values: 0 where masked.
    mask: whether a value is there.
    covariates: known constants of each series, None without any.
    """

    times: Float[Array, "num length"]
    values: Float[Array, "num length obs_dim"]
    mask: Bool[Array, "num length obs_dim"]
    covariates: Float[Array, "num cov_dim"] | None


def observe_series(
    times: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike | None,
    covariates: ArrayLike | None,
    *,
    obs_dim: int | None,
    cov_dim: int | None,
    start: float | None,
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
    if t.shape != x.shape[:2]:
        raise ValueError(f"times expected the shape {x.shape[:2]} of values, got {t.shape}")
    there: Any = np.ones(x.shape, bool) if mask is None else _array(mask)
    if there.shape not in (x.shape[:2], x.shape):
        raise ValueError(f"mask expected the shape {x.shape[:2]} or {x.shape}, got {there.shape}")
    if there.dtype != bool:
        raise TypeError(f"mask expected booleans, got an array of {there.dtype}")
    traced = any(isinstance(array, Tracer) for array in (t, x, there))
    xp: Any = jnp if traced else np
    there = xp.broadcast_to(there if there.ndim == 3 else there[..., None], x.shape)
    any_there = there.any(-1)
    if not traced:
        _check(t, x, there, start)
    first = xp.min(xp.where(any_there, t, np.inf)) if start is None else start
    # what is masked is at a time that any solver may pass through
    t = xp.where(any_there, t, -np.inf)
    t = jax.lax.cummax(t, 1) if traced else np.maximum.accumulate(t, 1)
    known = observe_covariates(covariates, len(x), cov_dim)
    return Series(xp.maximum(t, first), xp.where(there, x, 0.0), there, known)


def observe_covariates(covariates: ArrayLike | None, num: int, cov_dim: int | None) -> Any:
    """Covariates `(num, cov_dim)`, checked; None where `cov_dim` is None."""
    if cov_dim is None:
        if covariates is not None:
            raise ValueError(f"covariates expected None without cov_dim, got {described(covariates)}: pass cov_dim=")
        return None
    if covariates is None:
        raise ValueError(f"covariates expected the shape {(num, cov_dim)}, got None")
    known = _numbers(covariates, "covariates")
    if known.shape != (num, cov_dim):
        raise ValueError(f"covariates expected the shape {(num, cov_dim)}, got {known.shape}")
    if isinstance(known, np.ndarray):
        require_all(np.isfinite(known).all(1), "covariates expected finite numbers, got others", "series")
    return known


def observe_at(at: Times, num: int, start: float) -> np.ndarray:
    """Times to predict at, `(num, at)`, checked; arguments and errors are those of `LatentODE.predict`."""
    times = np.asarray(at)
    if times.ndim == 1:
        times = np.broadcast_to(times, (num, len(times)))
    if times.ndim != 2 or len(times) != num or times.shape[1] == 0:
        raise ValueError(f"at expected the shape (at,) or ({num}, at), got {np.shape(at)}")
    if not np.isfinite(times).all() or (np.diff(times) < 0).any() or times.min() < start:
        raise ValueError(f"at expected sorted, finite times from {start} on, got others")
    return times


def checked_window(window: tuple[float, float]) -> tuple[float, float]:
    """Start and end of a window of time; a TypeError where there are not two, a ValueError where they do not rise."""
    require_two_times(window=window)
    if not window[0] < window[1]:
        raise ValueError(f"window expected two finite times, the later one second, got {window}")
    return float(window[0]), float(window[1])


def checked_scales(
    name: str, center: Sequence[float] | None, spread: Sequence[float] | None, length: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Center and spread of each number of a vector, by default 0 and 1; a ValueError where they are none."""
    pair = []
    for word, values, default in ((f"{name}center", center, 0.0), (f"{name}spread", spread, 1.0)):
        numbers = (default,) * length if values is None else tuple(map(float, values))
        if len(numbers) != length or not np.isfinite(numbers).all():
            raise ValueError(f"{word} expected {length} finite numbers, got {values}")
        pair.append(numbers)
    if length and not min(pair[1]) > 0:
        raise ValueError(f"{name}spread expected positive numbers, got {pair[1]}")
    return pair[0], pair[1]


def _check(times: np.ndarray, values: np.ndarray, mask: np.ndarray, start: float | None) -> None:
    require_all(mask.any((1, 2)), "at least one value in each series, got none", "series")
    seen = mask.any(-1)
    require_all(np.isfinite(np.where(seen, times, 0)).all(1), "times expected finite numbers, got others", "series")
    finite = np.isfinite(np.where(mask, values, 0)).all((1, 2))
    advice = "mask=np.isfinite(values) leaves them out"
    require_all(finite, f"values expected finite numbers, got others ({advice})", "series")
    latest = np.maximum.accumulate(np.where(seen, times, -np.inf), 1)
    in_order = np.where(seen, times == latest, True).all(1)
    require_all(in_order, "times expected sorted along each series, got others", "series")
    if start is not None:
        early = np.where(seen, times, np.inf).min()
        if early < start:
            raise ValueError(f"times expected from {start} on, where the latent path starts, got {early}")


def _numbers(values: ArrayLike, name: str) -> Any:
    array = values if isinstance(values, Tracer) else as_numbers(values, name)
    return array.astype(jnp.result_type(float))


def _array(values: ArrayLike) -> Any:
    return values if isinstance(values, Tracer) else np.asarray(values)
