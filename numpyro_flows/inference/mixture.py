"""A mixture fitted to an unnormalized density by importance sampling. If modes are far apart, it has draws in each."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_triangular
from scipy.special import gammaln

from numpyro_flows.inference.certificate import Draws
from numpyro_flows.inference.gaussian import outward
from numpyro_flows.inference.newton import Density, values
from numpyro_flows.inference.product import Product
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.training.logs import log_sum_exp

_DRAWS_EACH = 100  # minimum for a component in a round: with 30, one of 120 modes was lost in every other round
_LEAST_ESS = 0.05  # of tempered weights


class Component(Protocol):
    """A distribution with draws and a density."""

    def draw(self, rng: np.random.Generator, num: int) -> Float[np.ndarray, "num dim"]: ...
    def log_prob(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]: ...


class Bell(NamedTuple):
    """A multivariate Student-t: `loc + factor z / sqrt(g / df)`, `z` standard normal and `g` chi-squared with `df`."""

    loc: Float[np.ndarray, " dim"]
    factor: Float[np.ndarray, "dim dim"] | Float[np.ndarray, " dim"]
    df: float = 1e6

    def require_coherent(self, dim: int) -> None:
        """Raise a ValueError if the parts do not fit together, for example in a damaged file."""
        whole = self.loc.shape == (dim,) and self.factor.shape in ((dim,), (dim, dim)) and self.df > 0
        factor = np.diag(self.factor) if self.factor.ndim == 1 else self.factor
        if not (whole and (np.diagonal(factor) > 0).all() and (np.triu(factor, 1) == 0).all()):
            raise ValueError(f"expected a Student-t distribution of {dim} coordinates, got {self}")

    def draw(self, rng: np.random.Generator, num: int) -> Float[np.ndarray, "num dim"]:
        z = rng.standard_normal((num, self.loc.size))
        return self.loc + outward(self.factor, z * np.sqrt(self.df / rng.chisquare(self.df, (num, 1))))

    def log_prob(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        return self._log_prob(self.squares(x))

    def _log_prob(self, squares: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        dim, df = self.loc.size, self.df
        log_det = np.log(self.factor if self.factor.ndim == 1 else np.diag(self.factor)).sum()
        constant = gammaln(0.5 * (df + dim)) - gammaln(0.5 * df) - 0.5 * dim * np.log(df * np.pi) - log_det
        return constant - 0.5 * (df + dim) * np.log1p(squares / df)

    def squares(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        """Squared distances from the centre, in units of the scale."""
        away = x - self.loc
        z = away / self.factor if self.factor.ndim == 1 else solve_triangular(self.factor, away.T, lower=True).T
        return (z**2).sum(1)

    def towards(
        self, x: Float[np.ndarray, "points dim"], weights: Float[np.ndarray, " points"], settings: FlowVISettings
    ) -> "Bell":
        """A step of expectation maximisation for weighted points, regularised if few of them have weight.

        Source: Liu, Rubin 1995 (maximum likelihood of the Student-t).
        """
        total = weights.sum()
        if not total > np.finfo(float).tiny:
            return self
        weights, dim = weights / total, self.loc.size
        effective = 1.0 / (weights**2).sum()
        scaled = weights * (self.df + dim) / (self.df + self.squares(x))  # far points of a heavy tail count less
        kept = settings.shrinkage * dim / (effective + settings.shrinkage * dim)
        loc = kept * self.loc + (1.0 - kept) * (scaled @ x / scaled.sum())
        away = (x - loc) * np.sqrt(scaled)[:, None]
        if self.factor.ndim == 1:
            factor = np.sqrt(kept * self.factor**2 + (1.0 - kept) * (away**2).sum(0))
        else:
            covariance = kept * self.factor @ self.factor.T + (1.0 - kept) * away.T @ away
            try:
                factor = np.linalg.cholesky(covariance)
            except np.linalg.LinAlgError:  # singular up to rounding
                return self
        bells = [Bell(loc, factor, df) for df in settings.degrees_of_freedom]
        squares = bells[0].squares(x)
        return max(bells, key=lambda bell: float(weights @ bell._log_prob(squares)))


class Mixture(NamedTuple):
    """Components with their shares, which sum to 1."""

    components: tuple[Component, ...]
    shares: Float[np.ndarray, " components"]

    @classmethod
    def even(cls, components: Sequence[Component]) -> "Mixture":
        return cls(tuple(components), np.full(len(components), 1.0 / len(components)))

    def draw(self, rng: np.random.Generator, num: int) -> Float[np.ndarray, "num dim"]:
        """Draws in random order."""
        counts = rng.multinomial(num, self.shares)
        parts = [component.draw(rng, n) for component, n in zip(self.components, counts) if n]
        return rng.permutation(np.concatenate(parts))

    def log_prob(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        return log_sum_exp(self.log_parts(x), 0)

    def log_parts(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, "components points"]:
        """Log density of each component times its share."""
        with np.errstate(divide="ignore"):
            shares = np.log(self.shares)
        parts = np.stack([share + component.log_prob(x) for share, component in zip(shares, self.components)])
        return np.where(np.isnan(parts), -np.inf, parts)  # a flow's inverse may break in the tails

    def joined(self, more: Sequence[Component], share: float) -> "Mixture":
        """The mixture with more components, which together have the share `share`."""
        if not more:
            return self
        shares = np.concatenate([self.shares * (1.0 - share), np.full(len(more), share / len(more))])
        return Mixture((*self.components, *more), shares)


@np.errstate(over="ignore", invalid="ignore")
def weighted_draws(mixture: Mixture, density: Density, rng: np.random.Generator, num: int) -> Draws:
    """Fresh draws with their weights."""
    x = mixture.draw(rng, num)
    log_density = np.asarray(values(density, x), np.float64)
    return Draws(x, log_density, log_density - mixture.log_prob(x))


def normalized(log_weights: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " draws"]:
    """Weights that sum to 1. Weights that are not finite count as 0; if all are, the result is all zeros."""
    finite = np.isfinite(log_weights)
    if not finite.any():
        return np.zeros(log_weights.size)
    weights = np.exp(np.where(finite, log_weights - log_weights[finite].max(), -np.inf))
    return weights / weights.sum()


@np.errstate(over="ignore", invalid="ignore")
def adapted(
    mixture: Mixture, density: Density, rng: np.random.Generator, settings: FlowVISettings, enough: float = 1.0
) -> Mixture:
    """The mixture moved towards the density, by expectation maximisation on its own weighted draws, in rounds.

    The round with the largest effective sample size is returned; a round with at least `enough` is the last. If the
    effective sample size is small, weights are tempered, because a few draws would attract all components.

    Source: Cappe, Douc, Guillin, Marin, Robert 2008 (population Monte Carlo), arXiv 0710.4242; the tempering: Koblents,
    Miguez 2015, arXiv 1208.5600.
    """
    best, most, in_vain = mixture, 0.0, 0
    for _ in range(settings.mixture_rounds):
        num = max(settings.mixture_draws, _DRAWS_EACH * len(mixture.components))
        draws = weighted_draws(mixture, density, rng, num)
        weights = normalized(draws.log_weight)
        if not weights.any():
            break
        ess = 1.0 / (weights**2).sum() / len(weights)
        in_vain = 0 if ess > 1.02 * most else in_vain + 1
        if ess > most:
            best, most = mixture, ess
        if most >= enough or in_vain == (1 if most > 0.5 else 3):
            break
        mixture = stepped(mixture, draws.x, tempered(draws.log_weight), settings)
    return best


def tempered(log_weights: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " draws"]:
    """Weights to the largest power, at most 1, whose effective sample size is a twentieth of their number."""
    low, high = 0.0, 2.0
    while high - low > 1e-3:
        power = 0.5 * (low + high)
        weights = normalized(power * log_weights)
        low, high = (power, high) if _LEAST_ESS * len(weights) * (weights**2).sum() <= 1.0 else (low, power)
        if low == 1.0:
            break
    return normalized(low * log_weights)


def fitted(
    mixture: Mixture, x: Float[np.ndarray, "draws dim"], rng: np.random.Generator, settings: FlowVISettings
) -> Mixture:
    """The mixture moved towards draws of equal weight, at most `mixture_draws` of them, by expectation maximisation."""
    x = rng.permutation(x)[: settings.mixture_draws]
    for _ in range(settings.mixture_rounds):
        mixture = stepped(mixture, x, np.ones(len(x)), settings)
    return mixture


def stepped(mixture: Mixture, x: np.ndarray, weights: np.ndarray, settings: FlowVISettings) -> Mixture:
    """A step of expectation maximisation for weighted points."""
    x, weights = x[weights > 0.0], weights[weights > 0.0]
    parts = mixture.log_parts(x)
    responsible = np.exp(parts - log_sum_exp(parts, 0)) * (weights / weights.sum())
    shares = responsible.sum(1)
    components = tuple(
        component.towards(x, responsible[k], settings) if isinstance(component, Bell | Product) else component
        for k, component in enumerate(mixture.components)
    )
    kept = shares >= settings.least_share
    return Mixture(
        tuple(component for component, keep in zip(components, kept) if keep), shares[kept] / shares[kept].sum()
    )
