"""Sites without a mean or a standard deviation: draws and quantiles can be right, moments do not exist."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.stats
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from scipy.optimize import brentq

from benchmarks.traps.case import Case, Truth
from benchmarks.traps.truth import PROBABILITIES, weighted_quantiles


def half_cauchy() -> None:
    numpyro.sample("x", dist.HalfCauchy(1.0))


def inverse_gamma() -> None:
    numpyro.sample("x", dist.InverseGamma(0.7, 1.0))


def quartiles_of(distribution: scipy.stats.rv_continuous, *args: float) -> Callable[[], Truth]:
    return lambda: Truth(0.0, {}, {"x": distribution.ppf(PROBABILITIES, *args)})


def rotation(seed: int, dim: int) -> Float[np.ndarray, "dim dim"]:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def rotated_student(q: Float[np.ndarray, "dim dim"], df: float) -> Callable:
    """A Student-t along the first column of `q`, standard normals along the others."""

    def model() -> None:
        x = jnp.asarray(numpyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (len(q),))))
        z = q.T @ x
        numpyro.factor("tail", dist.StudentT(df).log_prob(z[0]) + dist.Normal(0.0, 1.0).log_prob(z[1:]).sum())

    return model


def sum_quartiles(heavy: Float[np.ndarray, " num"], mean: float, sd: float) -> Float[np.ndarray, "3"]:
    """Quartiles of an independent heavy-tailed and a normal summand; `heavy` has equally likely values."""

    def below(x: float, q: float) -> float:
        return float(scipy.stats.norm.cdf((x - heavy - mean) / sd).mean() - q)

    return np.array([brentq(below, mean - 1e3, mean + 1e3, args=(q,)) for q in PROBABILITIES])


def equally_likely(distribution: scipy.stats.rv_continuous, *args: float, num: int = 20_000) -> Float[np.ndarray, " n"]:
    return distribution.ppf((np.arange(num) + 0.5) / num, *args)


def rotated_case(seed: int, dim: int, df: float, kind: str) -> Case:
    q = rotation(seed, dim)

    def truth() -> Truth:
        heavy = equally_likely(scipy.stats.t, df)
        columns = [sum_quartiles(scale * heavy, 0.0, float(np.sqrt(1.0 - scale**2))) for scale in q[:, 0]]
        return Truth(0.0, {}, {"x": np.stack(columns, 1)})

    return Case(rotated_student(q, df), truth, kind)


def dummies_for_all_levels(level: Array, y: Array) -> None:
    """The data know the sums of intercept and effects only; flat effects leave the intercept at its Cauchy prior."""
    intercept = jnp.asarray(numpyro.sample("intercept", dist.Cauchy(0.0, 2.5)))
    with numpyro.plate("level", 3):
        effect = numpyro.sample("effect", dist.ImproperUniform(constraints.real, (), ()))
    mean = jnp.asarray(numpyro.deterministic("level_mean", intercept + jnp.asarray(effect)))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.Normal(mean[level], 1.0), obs=y)


LEVEL = np.arange(30) % 3
DUMMIES = (LEVEL, np.array([1.0, -0.5, 2.0])[LEVEL] + np.random.default_rng(2).normal(size=30))


def dummies_truth() -> Truth:
    level, y = DUMMIES
    groups = [y[level == k] for k in range(3)]
    means, sds = np.array([g.mean() for g in groups]), np.array([g.size**-0.5 for g in groups])
    log_evidence = sum(scipy.stats.norm.logpdf(g, g.mean()).sum() + 0.5 * np.log(2 * np.pi / g.size) for g in groups)
    cauchy = equally_likely(scipy.stats.cauchy, 0.0, 2.5)
    effects = np.stack([sum_quartiles(-cauchy, mean, sd) for mean, sd in zip(means, sds)], 1)
    intercept = scipy.stats.cauchy.ppf(PROBABILITIES, 0.0, 2.5)
    return Truth(float(log_evidence), {"level_mean": (means, sds)}, {"intercept": intercept, "effect": effects})


def horseshoe(x: Array, y: Array) -> None:
    tau = jnp.asarray(numpyro.sample("tau", dist.HalfCauchy(1.0)))
    with numpyro.plate("column", x.shape[1]):
        local = jnp.asarray(numpyro.sample("local", dist.HalfCauchy(1.0)))
        z = jnp.asarray(numpyro.sample("z", dist.Normal(0.0, 1.0)))
    beta = jnp.asarray(numpyro.deterministic("beta", z * local * tau))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def orthogonal_design() -> tuple[Float[np.ndarray, "20 3"], Float[np.ndarray, " 20"]]:
    """Three columns with `x.T @ x` 20 times the identity: given tau, the coefficients are independent."""
    rng = np.random.default_rng(4)
    x = np.sqrt(20.0) * np.linalg.qr(rng.normal(size=(20, 3)))[0]
    return x, x @ np.array([1.0, 0.2, 0.0]) + rng.normal(size=20)


def horseshoe_truth() -> Truth:
    """Coefficients integrated in closed form, then a local scale and tau by quadrature on the log scale."""
    x, y = orthogonal_design()
    n = y.size
    estimates = x.T @ y / n
    log_tau, log_local = np.linspace(-20, 20, 801)[:, None], np.linspace(-20, 20, 1601)[None]
    ratio = n * np.exp(2 * (log_tau + log_local))  # prior variance over sampling variance
    keep = ratio / (1 + ratio)

    def log_half_cauchy(log_scale: np.ndarray) -> np.ndarray:
        return np.log(2 / np.pi) + log_scale - np.logaddexp(0, 2 * log_scale) + np.log(log_scale.ravel()[1] + 20)

    joint = [np.exp(0.5 * (n * b**2 * keep - np.log1p(ratio)) + log_half_cauchy(log_local)) for b in estimates]
    column = [values.sum(1) for values in joint]
    of_tau = np.exp(log_half_cauchy(log_tau))[:, 0] * np.prod(column, axis=0)
    constant = -0.5 * (n * np.log(2 * np.pi) + y @ y)
    moments, quartiles = [], []
    for b, values, total in zip(estimates, joint, column):
        weights = values * (of_tau / total)[:, None] / of_tau.sum()
        mean = (weights * keep).sum() * b
        moments.append((mean, np.sqrt((weights * (keep / n + (keep * b) ** 2)).sum() - mean**2)))
        quartiles.append(np.exp(weighted_quantiles(log_local[0], weights.sum(0))))
    means, sds = np.array(moments).T
    tau = np.exp(weighted_quantiles(log_tau[:, 0], of_tau / of_tau.sum()))
    quantiles = {"local": np.stack(quartiles, 1), "tau": tau}
    return Truth(float(np.log(of_tau.sum()) + constant), {"beta": (means, sds)}, quantiles)


CASES = {
    "HalfCauchy, no data": Case(half_cauchy, quartiles_of(scipy.stats.halfcauchy), "tails"),
    "horseshoe regression": Case(horseshoe, horseshoe_truth, "tails", orthogonal_design()),
    "Student-t(1.5) along no axis, 5 dimensions": rotated_case(11, 5, 1.5, "tails"),
    "Cauchy intercept behind dummies": Case(dummies_for_all_levels, dummies_truth, "tails", DUMMIES),
}

VARIATIONS = {
    "InverseGamma(0.7, 1), no data": Case(inverse_gamma, quartiles_of(scipy.stats.invgamma, 0.7), "variation"),
    "Student-t(1.2) along no axis, 8 dimensions": rotated_case(12, 8, 1.2, "variation"),
}
