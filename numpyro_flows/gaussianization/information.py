"""Information measures of samples, through Gaussianization: valid for data of any shape, not just Gaussian data."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from numpyro_flows.arguments import require_key
from numpyro_flows.gaussianization.entropies import Samples, neighbour_distances, neighbour_entropy, neighbour_noise
from numpyro_flows.gaussianization.marginals import fit_mixture
from numpyro_flows.gaussianization.rbig import checked_samples, fit_rbig, rng_of

_NUM_NEIGHBOURS = 5
_NUM_NULL = 8  # Gaussian samples for comparison with a density

Contributions = Float[np.ndarray, " num"]


class Estimate(NamedTuple):
    """A number of nats and its standard error.

    Example:
        >>> import jax, numpy as np  # doctest: +SLOW
        >>> from numpyro_flows.gaussianization import entropy
        >>> estimate = entropy(jax.random.key(0), np.random.default_rng(0).uniform(size=(2_000, 2)))
        >>> 0.0 < estimate.se < 0.1
        True
    """

    value: float
    se: float


def entropy(rng_key: PRNGKeyArray, data: ArrayLike) -> Estimate:
    """`h(X) = -E log p(X)`, the differential entropy.

    For a map `f` that nearly Gaussianizes, `h(X) = h(f(X)) - E log |det f'(X)|`. The log-determinant contains the part
    that the layers removed. The entropy of the rest is measured by nearest neighbours, which is unbiased for a
    Gaussian. Each half of the data is measured by the map fitted to the other half, so overfitting does not count as
    information. The standard error does not include the bias of nearest neighbours, which smooth sharp edges: 0.03 nats
    for 2,000 points of a uniform distribution on a square.

    Args:
        rng_key: random key.
        data: independent draws, of shape `(num, dim)`.

    Raises:
        ValueError: if half of the data are not valid data for `fit_rbig`.

    Source: Laparra, Camps-Valls, Malo 2011, IEEE TNN 22(4); Ao, Li 2022, AAAI 36.

    Example:
        >>> data = np.random.default_rng(0).uniform(size=(2_000, 2))  # doctest: +SLOW
        >>> estimate = entropy(jax.random.key(0), data)
        >>> abs(estimate.value) < 4 * estimate.se + 0.03
        True
    """
    require_key(rng_key)
    samples = checked_samples(data)
    return _estimate(_contributions(rng_key, samples)[0], samples.shape[1])


def total_correlation(rng_key: PRNGKeyArray, data: ArrayLike) -> Estimate:
    """`T(X) = sum_i h(X_i) - h(X)`, the divergence from independence.

    It is the sum over layers of what each removes, after the marginals were made Gaussian. It is not the difference to
    the entropy of a Gaussian with the same covariance, which is another number unless the data are Gaussian. The same
    maps give all entropies of the same points, so their errors largely cancel. Args and errors: see `entropy`.

    Example:
        >>> rng = np.random.default_rng(0)  # doctest: +SLOW
        >>> x = rng.normal(size=(2_000, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
        >>> estimate = total_correlation(jax.random.key(0), x)
        >>> bool(abs(estimate.value + 0.5 * np.log(1 - 0.8**2)) < 4 * estimate.se)
        True
    """
    require_key(rng_key)
    samples = checked_samples(data)
    joint, marginal = _contributions(rng_key, samples)
    return _estimate(marginal.sum(1) - joint, samples.shape[1], *[1] * samples.shape[1])


def negentropy(rng_key: PRNGKeyArray, data: ArrayLike) -> Estimate:
    """`J(X) = h(G) - h(X)`, `G` the Gaussian of the same covariance. Args and errors: see `entropy`.

    Example:
        >>> import jax, numpy as np  # doctest: +SLOW
        >>> from numpyro_flows.gaussianization import negentropy
        >>> estimate = negentropy(jax.random.key(0), np.random.default_rng(0).exponential(size=(2_000, 1)))
        >>> bool(abs(estimate.value - 0.5 * np.log(2 * np.pi / np.e)) < 4 * estimate.se)
        True
    """
    require_key(rng_key)
    samples = checked_samples(data)
    centred = samples - samples.mean(0)
    covariance = centred.T @ centred / len(samples)
    mahalanobis = (centred * np.linalg.solve(covariance, centred.T).T).sum(1)
    gaussian = 0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + mahalanobis)
    return _estimate(gaussian - _contributions(rng_key, samples)[0], samples.shape[1])


def mutual_information(rng_key: PRNGKeyArray, x: ArrayLike, y: ArrayLike) -> Estimate:
    """`I(X; Y) = h(X) + h(Y) - h(X, Y)` of vectors drawn together: row `i` of `x` with row `i` of `y`.

    Shapes are `(num, dim_x)` and `(num, dim_y)`.

    Raises:
        ValueError: as `entropy`, and if the numbers of rows differ.

    Example:
        >>> import jax, numpy as np  # doctest: +SLOW
        >>> from numpyro_flows.gaussianization import mutual_information
        >>> x, noise = np.random.default_rng(0).normal(size=(2, 2_000, 1))
        >>> estimate = mutual_information(jax.random.key(0), x, 0.8 * x + 0.6 * noise)
        >>> bool(abs(estimate.value + 0.5 * np.log(1 - 0.8**2)) < 4 * estimate.se)
        True
    """
    require_key(rng_key)
    x_samples, y_samples = checked_samples(x, "x"), checked_samples(y, "y")
    if len(x_samples) != len(y_samples):
        raise ValueError(f"expected as many rows of x as of y, got {len(x_samples)} and {len(y_samples)}")
    together = np.concatenate([x_samples, y_samples], axis=1)
    of_x, of_y, joint = (_contributions(rng_key, s)[0] for s in (x_samples, y_samples, together))
    return _estimate(of_x + of_y - joint, *(s.shape[1] for s in (x_samples, y_samples, together)))


def kl_divergence(rng_key: PRNGKeyArray, x: ArrayLike, y: ArrayLike) -> Estimate:
    """`KL(X || Y) = -h(X) - E_X log p_Y(X)` of two independent samples, `(num_x, dim)` and `(num_y, dim)`.

    `log p_Y` is the density of the map fitted to half of `y`. The density of the other half about each point of `x`
    corrects it, measured by nearest neighbours relative to Gaussian samples of the same size. If `Y` has no points near
    those of `X`, the tails of the fit decide. The standard error includes the error from the sample of `Y`.

    Raises:
        ValueError: as `entropy`, and if the dimensions differ.

    Example:
        >>> import jax, numpy as np  # doctest: +SLOW
        >>> from numpyro_flows.gaussianization import kl_divergence
        >>> x, y = np.random.default_rng(0).normal(size=(2, 2_000, 1))
        >>> estimate = kl_divergence(jax.random.key(0), x, y + 1.0)
        >>> abs(estimate.value - 0.5) < 4 * estimate.se
        True
    """
    require_key(rng_key)
    x_samples, y_samples = checked_samples(x, "x"), checked_samples(y, "y")
    if x_samples.shape[1] != y_samples.shape[1]:
        raise ValueError(f"expected x and y of one dimension, got {x_samples.shape[1]} and {y_samples.shape[1]}")
    dim = x_samples.shape[1]
    value = -_contributions(rng_key, x_samples)[0] - _log_density(rng_key, y_samples, x_samples)
    own = _estimate(value, dim, dim)
    # a point of Y that is left out or added changes the value by how much more often X is there
    ratio = np.exp(_log_density(rng_key, x_samples, y_samples) - _log_density(rng_key, y_samples, y_samples))
    return Estimate(own.value, float(np.hypot(own.se, ratio.std() / np.sqrt(len(ratio)))))


def _contributions(rng_key: PRNGKeyArray, samples: Samples) -> tuple[Contributions, Float[np.ndarray, "num dim"]]:
    """Contributions of each point to the joint entropy and to those of the coordinates, whose means are estimates."""
    joint, marginal = np.empty(len(samples)), np.empty(samples.shape)
    for fitted, held_out in _halves(rng_key, len(samples)):
        fit = fit_rbig(rng_key, checked_samples(samples[fitted], "half of the data"))
        z, log_det = _mapped(fit.bijection.inverse_and_log_det, samples[held_out])
        joint[held_out] = _centred(z) - log_det
        loc, scale = samples[fitted].mean(0), samples[fitted].std(0)
        for j in range(samples.shape[1]):
            own = (samples[:, [j]] - loc[j]) / scale[j]
            z, log_slope = _mapped(fit_mixture(own[fitted]).transform_and_log_det, own[held_out])
            marginal[held_out, j] = _centred(z) - log_slope + np.log(scale[j])
    return joint, marginal


def _log_density(rng_key: PRNGKeyArray, of: Samples, at: Samples) -> Contributions:
    """Log density of the sample `of` at the points `at`: the mean over both halves of a fit's corrected density."""
    rng, num, dim = rng_of(rng_key), *of.shape
    total = np.zeros(len(at))
    for fitted, held_out in _halves(rng_key, num):
        fit = fit_rbig(rng_key, checked_samples(of[fitted], "half of the data"))
        among, _ = _mapped(fit.bijection.inverse_and_log_det, of[held_out])
        z, log_det = _mapped(fit.bijection.inverse_and_log_det, at)
        null = [neighbour_distances(z, rng.normal(size=among.shape), _NUM_NEIGHBOURS) for _ in range(_NUM_NULL)]
        correction = dim * (np.mean(null, axis=0) - neighbour_distances(z, among, _NUM_NEIGHBOURS))
        total += -0.5 * (z**2 + np.log(2 * np.pi)).sum(1) + log_det + correction
    return total / 2


def _halves(rng_key: PRNGKeyArray, num: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Data to fit and data to measure, both ways round; the same split for every sample of one size."""
    order = rng_of(rng_key).permutation(num)
    one, other = order[: num // 2], order[num // 2 :]
    return [(one, other), (other, one)]


def _centred(z: Samples) -> Contributions:
    """Minus the log density of N(0, I), shifted so that the mean is the entropy of `z`.

    The contributions of single distances to neighbours vary less than the log density does, so they would give too
    small standard errors.
    """
    minus_log_density = 0.5 * (z**2 + np.log(2 * np.pi)).sum(1)
    return minus_log_density + (neighbour_entropy(z) - minus_log_density.mean())


def _estimate(contributions: Contributions, *dims: int) -> Estimate:
    """The mean, and the standard error including the noise of entropies by neighbours in these dimensions."""
    variance = contributions.var() + sum(neighbour_noise(dim) for dim in dims)
    return Estimate(float(contributions.mean()), float(np.sqrt(variance / len(contributions))))


def _mapped(method: Callable, data: Samples) -> tuple[Samples, Contributions]:
    """`method` of every event, in NumPy."""
    values, log_dets = _batched(method, jnp.asarray(data, float))
    return np.asarray(values, dtype=float), np.asarray(log_dets, dtype=float)


@eqx.filter_jit
def _batched(method: Callable, data: Float[Array, "num dim"]) -> tuple[Array, Array]:
    return jax.vmap(method)(data)
