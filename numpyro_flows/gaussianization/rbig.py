"""Rotation-based iterative Gaussianization: a flow fitted greedily, layer by layer, without gradients."""

import time
from collections.abc import Sequence
from functools import cache, partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from numpyro_flows.arguments import as_numbers, listed, require_choice, require_counts, require_key
from numpyro_flows.bijections import AbstractBijection, Affine, Chain, Householder, Invert, Scan
from numpyro_flows.gaussianization.entropies import Samples, divergences_from_normal
from numpyro_flows.gaussianization.marginals import Marginal, fit_empirical, fit_mixture, fit_spline
from numpyro_flows.gaussianization.rotations import Kind, find_rotation

MarginalKind = Literal["mixture", "logistic", "spline", "empirical"]
"""What a marginal map is made of: a mixture of normals or of logistics, a spline, the empirical distribution."""

MARGINALS: dict[str, Marginal] = {
    "mixture": fit_mixture,
    "logistic": partial(fit_mixture, kind="logistic"),
    "spline": fit_spline,
    "empirical": fit_empirical,
}
_PATIENCE = 2  # the fit ends after so many layers without a significant gain
_NUM_NULL = 8  # Gaussian samples that determine what is significant
_SIGNIFICANT = 2.0  # standard deviations
_MAX_NULL = 3_000  # size of these; noise falls like the root of the size


class RBIG(NamedTuple):
    """A fit by `fit_rbig`.

    Attributes:
        bijection: `transform` maps the base to the data, `inverse` the data to the base, both in closed form.
        total_correlation_drops: decrease, by each layer, of the sum of its coordinates' divergences from N(0, 1), in
            nats. The layer that acts on the data first comes first, and its value is the divergence of the standardised
            marginals. The others sum to the total correlation, as far as it was removed.
        layers: number of layers.
        seconds: seconds that the fit took.

    Example:
        >>> import jax, numpy as np  # doctest: +SLOW
        >>> from numpyro_flows.gaussianization import fit_rbig
        >>> fit = fit_rbig(jax.random.key(0), np.random.default_rng(0).exponential(size=(200, 1)))
        >>> fit.total_correlation_drops.shape == (fit.layers,)
        True
    """

    bijection: Chain
    total_correlation_drops: Float[np.ndarray, " layers"]
    layers: int
    seconds: float


def fit_rbig(
    rng_key: PRNGKeyArray,
    data: ArrayLike,
    *,
    marginal: MarginalKind = "mixture",
    rotation: Kind = "best",
    max_layers: int = 50,
) -> RBIG:
    """Map data to a standard normal variable: standardise, then apply layers of a rotation and of marginal maps.

    Each layer takes the rotation whose marginals are farthest from Gaussian, and Gaussianizes these; the first layer
    has no rotation. A rotation does not change the divergence of the data from N(0, I). Marginal maps lower it by just
    as much as they lower the marginals' divergences. The fit ends after two layers in a row that remove no more than
    they would remove from Gaussian data of the same size, whose noise they fit.

    Args:
        rng_key: random key.
        data: data of shape `(num, dim)`.
        marginal: "mixture" of normals, "logistic" mixture, "spline", or "empirical".
        rotation: "best" of PCA, ICA and some random ones, or one of "pca", "ica", "random".
        max_layers: maximum number of layers.

    Raises:
        ValueError: if data have another shape, fewer than `dim + 8` rows, rows that are not finite, or constant
            columns. Also if an option is unknown, or `max_layers` is below 1.

    Source: Laparra, Camps-Valls, Malo 2011, IEEE Transactions on Neural Networks 22(4), arXiv 1602.00229.

    Example:
        >>> rng = np.random.default_rng(0)  # doctest: +SLOW
        >>> x = rng.normal(size=(1_000, 1))
        >>> fit = fit_rbig(jax.random.key(0), np.concatenate([x, x**2 + 0.5 * rng.normal(size=x.shape)], axis=1))
        >>> fit.layers > 1
        True
        >>> fit.bijection.shape
        (2,)
    """
    require_key(rng_key)
    start = time.perf_counter()
    require_choice(MARGINALS, marginal=marginal)
    require_counts(max_layers=max_layers)
    samples = checked_samples(data)
    rng = rng_of(rng_key)
    loc, scale = samples.mean(0), samples.std(0)
    z = (samples - loc) / scale
    least = _least_drop(rotation, marginal, *z.shape)
    layers, drops = [], []
    while len(layers) < max_layers:
        layer, z, drop = _fit_layer(z, find_rotation(rotation, z, rng) if layers else np.eye(z.shape[1]), marginal)
        layers.append(layer)
        drops.append(drop)
        if len(drops) > _PATIENCE and max(drops[-_PATIENCE:]) < least:
            layers, drops = layers[:-_PATIENCE], drops[:-_PATIENCE]
            break
    to_data = [Chain([Invert(marginals), Householder.from_matrix(matrix.T)]) for matrix, marginals in reversed(layers)]
    bijection = Chain([Scan(stack_of(to_data)), Affine(loc, scale)])
    return RBIG(bijection, np.array(drops), len(layers), time.perf_counter() - start)


def checked_samples(data: ArrayLike, name: str = "data") -> Samples:
    """Data in double precision; a ValueError unless they are `dim + 8` or more finite rows `(num, dim)` that vary."""
    samples = as_numbers(data, name)
    if samples.ndim != 2 or samples.shape[1] < 1:
        advice = f": write {name}[:, None]" if samples.ndim == 1 else ""
        raise ValueError(f"expected {name} of shape (num, dim), got {samples.shape}{advice}")
    num, dim = samples.shape
    if num < dim + 8:
        raise ValueError(f"expected {name} of at least dim + 8 = {dim + 8} rows, got {num}")
    bad = np.flatnonzero(~np.isfinite(samples).all(1))
    if bad.size:
        raise ValueError(f"expected finite {name}, got NaN or infinite values in {bad.size} rows: {listed(bad)}")
    constant = np.flatnonzero(np.ptp(samples, axis=0) == 0)
    if constant.size:
        raise ValueError(f"expected {name} that vary in every column, got constant columns {constant.tolist()}")
    return samples


def rng_of(key: PRNGKeyArray) -> np.random.Generator:
    """A NumPy generator for what is fitted in NumPy."""
    return np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))


def _fit_layer(
    z: Samples, matrix: np.ndarray, marginal: str
) -> tuple[tuple[np.ndarray, AbstractBijection], Samples, float]:
    """A layer after a rotation, the samples after it, and the decrease of their marginals' divergences."""
    z = z @ matrix.T
    marginals = MARGINALS[marginal](z)
    mapped = np.asarray(_transformed(marginals, jnp.asarray(z, float)), dtype=float)
    drop = (divergences_from_normal(z) - divergences_from_normal(mapped)).mean(0).sum()
    return (matrix, marginals), mapped, float(drop)


@eqx.filter_jit  # once: the layers of a fit have one structure
def _transformed(bijection: AbstractBijection, x: Float[Array, "num dim"]) -> Float[Array, "num dim"]:
    return jax.vmap(bijection.transform)(x)


def stack_of[T](modules: Sequence[T]) -> T:
    """Modules of one structure as one, whose arrays have a leading axis, as `Scan` takes it."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *modules)


@cache
def _least_drop(rotation: Kind, marginal: str, num: int, dim: int) -> float:
    """The decrease that a layer rarely exceeds on Gaussian data, by fitting their noise with its rotation and maps."""
    rng = np.random.default_rng(0)
    size = min(num, _MAX_NULL)
    drops = []
    for _ in range(_NUM_NULL):
        x = rng.normal(size=(size, dim))
        drops.append(_fit_layer(x, find_rotation(rotation, x, rng), marginal)[2])
    return float(np.mean(drops) + _SIGNIFICANT * np.std(drops)) * np.sqrt(size / num)
