"""Exact answers for counts with a random effect each: effects by Gauss-Hermite, coefficients by quasi-Monte Carlo.

Given the coefficients and the scale, every effect is an integral over one dimension. Given the scale, the integrated
posterior of the coefficients is log-concave and nearly Gaussian: importance sampling around its mode, with the same
scrambled Sobol points for every cell of a grid of log scales. Several scrambles give the standard errors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, Float
from scipy.stats import qmc

from benchmarks.necks.case import Marginal, Truth

NODES, WEIGHTS = np.polynomial.hermite.hermgauss(30)
MODE_STEPS = 30
LARGEST_STEP = 2.0  # of Newton's method, on the scale of the linear predictor
SCRAMBLES, POINTS = 8, 128
DF = 8  # of the proposal

type LogLikelihood = Callable[[Float[Array, " rows"]], Float[Array, " rows"]]


def poisson(count: Float[np.ndarray, " rows"]) -> LogLikelihood:
    """Log probabilities of counts, as a function of their log rates."""
    counts = jnp.asarray(count)
    return lambda u: counts * u - jnp.exp(u) - gammaln(counts + 1.0)


def binomial(total: Float[np.ndarray, " rows"], count: Float[np.ndarray, " rows"]) -> LogLikelihood:
    """Log probabilities of counts, as a function of their logits."""
    totals, counts = jnp.asarray(total), jnp.asarray(count)
    choices = gammaln(totals + 1.0) - gammaln(counts + 1.0) - gammaln(totals - counts + 1.0)
    return lambda u: counts * u - totals * jax.nn.softplus(u) + choices


class Effects(NamedTuple):
    """Rows with linear predictor `design @ coefficients + sigma z`, `z ~ Normal(0, 1)`.

    log_likelihood: of each row, a concave function of the linear predictor.
    log_prior: of the coefficients.
    log_scale_prior: density of `log sigma`.
    start: coefficients from which Newton's method finds the mode.
    """

    design: Float[np.ndarray, "rows coefficients"]
    log_likelihood: LogLikelihood
    log_prior: Callable[[Float[Array, " coefficients"]], Float[Array, ""]]
    log_scale_prior: Callable[[Float[Array, ""]], Float[Array, ""]]
    start: Float[np.ndarray, " coefficients"]

    def log_joint(self, coefficients: Float[Array, " coefficients"], log_sigma: Float[Array, ""]) -> Float[Array, ""]:
        """Log density of coefficients, `log sigma` and data, with the effects integrated out."""
        rows = log_integrals(self.log_likelihood, jnp.asarray(self.design) @ coefficients, jnp.exp(log_sigma))
        return self.log_prior(coefficients) + self.log_scale_prior(log_sigma) + rows.sum()


def log_integrals(
    log_likelihood: LogLikelihood, eta: Float[Array, " rows"], sigma: Float[Array, ""]
) -> Float[Array, " rows"]:
    """`log of the integral of exp(log_likelihood(eta + sigma z)) N(z; 0, 1)` by Gauss-Hermite around the mode of `z`.

    Source: Liu, Pierce 1994 (Biometrika 81).
    """
    slope = jax.grad(lambda u: log_likelihood(u).sum())

    def slopes(z: Float[Array, " rows"]) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
        first, second = jax.jvp(slope, (eta + sigma * z,), (jnp.ones_like(eta),))
        return sigma * first - z, sigma**2 * second - 1.0

    def step(_: int, z: Float[Array, " rows"]) -> Float[Array, " rows"]:
        first, second = slopes(z)
        return z + jnp.clip(-first / second, -LARGEST_STEP / sigma, LARGEST_STEP / sigma)

    mode = jax.lax.fori_loop(0, MODE_STEPS, step, jnp.zeros_like(eta))
    scale = jnp.sqrt(-2.0 / slopes(mode)[1])
    # the integral is the same wherever the nodes are, so they count as constants in its derivatives
    mode, scale = jax.lax.stop_gradient((mode, scale))
    z = mode + scale * NODES[:, None]
    logs = jax.vmap(log_likelihood)(eta + sigma * z) - 0.5 * z**2 + (np.log(WEIGHTS) + NODES**2)[:, None]
    return logsumexp(logs, axis=0) + jnp.log(scale) - 0.5 * np.log(2.0 * np.pi)


def by_scale(effects: Effects, grid: Float[np.ndarray, " cells"], name: str) -> Truth:
    """The marginal of `log sigma` on the midpoints of a grid, and the log evidence.

    Raises:
        ValueError: where Newton's method did not find the mode of the coefficients for some scale.
    """
    points = _proposals(len(effects.start))

    def at(log_sigma: Float[Array, ""]) -> tuple[Float[Array, " scrambles"], Float[Array, ""]]:
        def log_joint(coefficients: Float[Array, " coefficients"]) -> Float[Array, ""]:
            return effects.log_joint(coefficients, log_sigma)

        def step(_: int, x: Float[Array, " coefficients"]) -> Float[Array, " coefficients"]:
            return x - jnp.linalg.solve(jax.hessian(log_joint)(x), jax.grad(log_joint)(x))

        mode = jax.lax.fori_loop(0, MODE_STEPS, step, jnp.asarray(effects.start))
        precision = jnp.linalg.cholesky(-jax.hessian(log_joint)(mode))
        x = mode + solve_triangular(precision, points.z.reshape(-1, mode.size).T, lower=True, trans=1).T
        logs = jax.vmap(log_joint)(x).reshape(SCRAMBLES, POINTS) - points.log_prob
        logs = logs - jnp.log(jnp.diag(precision)).sum()
        left = solve_triangular(precision, jax.grad(log_joint)(mode), lower=True)
        return logsumexp(logs, axis=1) - np.log(POINTS), jnp.abs(left).max()

    logs, left = (np.asarray(values) for values in jax.jit(lambda grid: jax.lax.map(at, grid))(jnp.asarray(grid)))
    if not left.max() < 1e-4:
        raise ValueError(f"the mode of the coefficients expected to be found, got a gradient of {left.max():.1g} sd")
    weights = np.exp(logs - logs.max())  # cells, scrambles
    marginals = [Marginal.on_grid(grid, column) for column in weights.T]
    marginal = Marginal.on_grid(grid, weights.sum(1))
    evidences = weights.sum(0)
    log_evidence = np.log(evidences.mean() * (grid[1] - grid[0])) + logs.max()
    sd_se = np.std([each.sd for each in marginals], ddof=1) / SCRAMBLES**0.5
    se = evidences.std(ddof=1) / evidences.mean() / SCRAMBLES**0.5
    return Truth(float(log_evidence), {name: marginal._replace(sd_se=float(sd_se))}, float(se))


class _Proposals(NamedTuple):
    z: Float[np.ndarray, "scrambles points dim"]
    log_prob: Float[np.ndarray, "scrambles points"]


def _proposals(dim: int) -> _Proposals:
    """Points of a multivariate Student-t, one scrambled Sobol sequence for each scramble."""
    uniform = np.stack([qmc.Sobol(dim + 1, rng=seed).random(POINTS) for seed in range(SCRAMBLES)])
    squares = scipy.stats.chi2.ppf(uniform[..., -1:], DF)
    z = scipy.stats.norm.ppf(uniform[..., :-1]) * np.sqrt(DF / squares)
    return _Proposals(z, scipy.stats.multivariate_t(np.zeros(dim), df=DF).logpdf(z))
