"""Angles at the seam and the necks of hierarchical models."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.stats
from jaxtyping import Array, Float
from numpyro.handlers import reparam
from numpyro.infer.reparam import CircularReparam
from scipy.special import polygamma, psi

from benchmarks.traps.case import Case, Truth, Values
from benchmarks.traps.truth import by_grid, weighted_moments, weighted_quantiles


def angle(y: Array, times: float = 1.0) -> None:
    """The direction that observations have around; `times=2`: of an axis, so that two directions are as good."""
    phi = jnp.asarray(numpyro.sample("phi", dist.VonMises(0.0, 0.01)))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", dist.VonMises(times * phi, 20.0), obs=y)


def direction(draws: Values) -> Values:
    """The unit vector of the angle: its mean has the circular mean as its angle, and the resultant as its length."""
    return {"direction": np.stack([np.cos(draws["phi"]), np.sin(draws["phi"])], 1)}


def angle_case(seed: int, centre: float, times: float, kind: str, circular: bool = False) -> Case:
    y = np.random.default_rng(seed).vonmises(centre, 20.0, 20)
    model = reparam(angle, config={"phi": CircularReparam()}) if circular else angle
    grid = {"phi": np.linspace(-np.pi, np.pi, 20_001)}
    return Case(model, lambda: by_grid(angle, (y, times), grid, direction), kind, (y, times), derived=direction)


def centred_groups(y: Array, shape: float, noise: float) -> None:
    """Groups with a prior that has much mass at small standard deviations between them."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.Gamma(shape, shape))
    with numpyro.plate("group", y.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, noise), obs=y)


def neck_truth(y: Float[np.ndarray, " groups"], shape: float, noise: float) -> Truth:
    """Groups and their mean integrated in closed form, tau by quadrature on the log scale."""
    log_tau = np.linspace(-300.0, 6.0, 60_001)
    tau = np.exp(log_tau)
    variance = noise**2 + tau**2
    precision = 1 / 25 + y.size / variance
    centre = y.sum() / variance / precision
    squares = y @ y / variance - precision * centre**2
    logs = -0.5 * (y.size * np.log(2 * np.pi * variance) + np.log(25 * precision) + squares)
    logs = logs + scipy.stats.gamma.logpdf(tau, shape, scale=1 / shape) + log_tau
    weights = np.exp(logs - logs.max())
    total = weights.sum()
    weights = weights / total
    keep = tau**2 / variance
    means = keep[:, None] * y + ((1 - keep) * centre)[:, None]
    spread = keep * noise**2 + (1 - keep) ** 2 / precision
    mean, mu = weights @ means, weights @ centre
    moments = weighted_moments({"tau": tau}, weights) | {
        "mu": (mu, np.sqrt(weights @ (1 / precision + centre**2) - mu**2)),
        "theta": (mean, np.sqrt(weights @ (spread[:, None] + means**2) - mean**2)),
    }
    step = log_tau[1] - log_tau[0]
    quantiles = {"log_tau": weighted_quantiles(log_tau, weights)}
    return Truth(float(np.log(total * step) + logs.max()), moments, quantiles)


def log_tau(draws: Values) -> Values:
    return {"log_tau": np.log(draws["tau"])}


def neck_case(seed: int, groups: int, shape: float, noise: float, kind: str) -> Case:
    """Quartiles of log(tau) are compared: in double precision draws cannot follow the neck to its end."""
    args: tuple[Any, ...] = (np.random.default_rng(seed).normal(0.0, noise, groups), shape, noise)
    return Case(centred_groups, lambda: neck_truth(*args), kind, args, derived=log_tau)


def half_normal_funnel() -> None:
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("i", 9):
        numpyro.sample("x", dist.Normal(0.0, tau))


def funnel_truth() -> Truth:
    of_log = (psi(0.5) + np.log(2)) / 2, np.sqrt(polygamma(1, 0.5)) / 2
    moments = {"tau": (np.sqrt(2 / np.pi), np.sqrt(1 - 2 / np.pi)), "x": (np.zeros(9), np.ones(9)), "log_tau": of_log}
    return Truth(0.0, {name: (np.asarray(mean), np.asarray(sd)) for name, (mean, sd) in moments.items()})


CASES = {
    "angle at the seam": angle_case(0, np.pi, 1.0, "angle"),
    "angle at the seam, CircularReparam": angle_case(0, np.pi, 1.0, "angle", circular=True),
    "gamma neck, 22 dimensions": neck_case(3, 20, 0.1, 1.0, "neck"),
}

VARIATIONS = {
    "angle of an axis": angle_case(1, 3.0, 2.0, "variation"),
    "angle of an axis, CircularReparam": angle_case(1, 3.0, 2.0, "variation", circular=True),
    "gamma neck, 10 dimensions": neck_case(8, 8, 0.3, 2.0, "variation"),
    "half-normal funnel, 10 dimensions": Case(half_normal_funnel, funnel_truth, "variation", derived=log_tau),
}
