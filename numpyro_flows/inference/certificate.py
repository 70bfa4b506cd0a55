"""What importance weights say about a fit: effective sample size, Pareto k-hat, evidence, and a verdict."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from numpyro_flows.inference.psis import smooth
from numpyro_flows.inference.settings import FlowVISettings

_DEFAULTS = FlowVISettings()
DECIDING = (0.1, 0.25, 0.5)  # shares of the draws at which fewer may decide
_FAR_OFF = 0.1  # an ESS that no further draws bring above `min_ess`
# An ESS above `sufficient_ess`. With 0.97 and a k-hat below 0.5, 5,000 draws certified up to a third of weights with a
# rare tail of shape 0.8 to 1 that 20,000 refuse; with this none of 900.
_NEARLY_EXACT = 0.992
_COARSEST = 1.0  # nats, to which log densities must be resolved


class Draws(NamedTuple):
    """Draws `x` of a fit q with `log p(x, data)` and `log p(x, data) - log q(x)`."""

    x: Float[np.ndarray, "draws dim"]
    log_density: Float[np.ndarray, " draws"]
    log_weight: Float[np.ndarray, " draws"]


class Check(NamedTuple):
    """One check of a fit.

    name: what was looked at.
    found: what was found; "not run" and why, where it was not.
    cost: evaluations of the density.
    blind: what it cannot see.
    """

    name: str
    found: str
    cost: int
    blind: str

    @property
    def run(self) -> bool:
        return not self.found.startswith("not run")


class Certificate(NamedTuple):
    """The verdict on a fit q of the posterior p, from weights `w = p(x, data) / q(x)` of independent draws of q.

    Attributes:
        certified: `khat < 0.7 and ess >= 0.5`, or `ess >= 0.99`, where log densities are resolved to less than 1 nat.
        why: where not certified, the reason in words; else empty.
        khat: Pareto shape of the largest weights; above 0.7 no finite number of draws of use tells what is missing. NaN
            where the weights are too nearly constant for an estimate.
        ess: effective sample size over number of draws, `(sum w)^2 / (n sum w^2)`, in [0, 1].
        max_weight: largest normalised weight.
        elbo: mean of `log w`.
        elbo_se: its standard error.
        log_evidence: `log mean w`, the log of the model's evidence, with half of what lies beyond every draw.
        log_evidence_se: its standard error, by the delta method; it contains what the fit may lack.
        num_draws: number of weights.
        tail_index: the smallest tail index on rays from the centre, on the unconstrained scale: beyond `r` the
            probability falls like `r^-index`. With 2 or less there is no variance, with 1 or less no mean: read
            medians and quantiles. Infinite for ordinary tails.
        beyond: the share of the posterior that lies beyond every draw, at the ends of constrained sites
            and of others that are scales, less what chance leaves there.
        checks: what the verdict is based on, and what each check cannot see.
        by: "weights", or "mcmc" where the draws are Markov chains'. Of chains `certified` is r-hat < 1.01 with bulk and
            tail ESS > 400, and `khat`, `ess`, `max_weight`, `elbo` are NaN.
        rhat: of chains, the largest rank-normalised r-hat of any unconstrained coordinate.
        ess_bulk: the smallest bulk ESS, in draws.
        ess_tail: the smallest tail ESS, in draws.

    Weights see only where q has draws: a mode that q misses leaves them all perfect. So other checks stand beside them.
    """

    certified: bool
    why: str
    khat: float
    ess: float
    max_weight: float
    elbo: float
    elbo_se: float
    log_evidence: float
    log_evidence_se: float
    num_draws: int
    tail_index: float = float("inf")
    beyond: float = 0.0
    checks: tuple[Check, ...] = ()
    by: Literal["weights", "mcmc"] = "weights"
    rhat: float = float("nan")
    ess_bulk: float = float("nan")
    ess_tail: float = float("nan")

    @classmethod
    def unknown(cls, why: str, num_draws: int = 0) -> "Certificate":
        """Of a fit that weights say nothing about."""
        nan = float("nan")
        return cls(False, why, float("inf"), 0.0, 1.0, nan, nan, nan, nan, num_draws)

    def __str__(self) -> str:
        return "\n".join(["CERTIFIED" if self.certified else f"NOT CERTIFIED: {self.why}", *self.figures()])

    def figures(self) -> list[str]:
        """What the verdict is based on, in lines of text."""
        evidence = f"log evidence {self.log_evidence:.3f} +- {self.log_evidence_se:.3f}"
        if self.by == "mcmc":
            lines = [
                f"by Markov chains, {self.num_draws:,} draws: r-hat {self.rhat:.3f}, bulk ESS {self.ess_bulk:,.0f}, "
                f"tail ESS {self.ess_tail:,.0f}, {evidence}"
            ]
        else:
            lines = [
                f"k-hat {self.khat:.2f}, ESS {self.ess:.1%} of {self.num_draws} draws, largest weight "
                f"{self.max_weight:.2g}, ELBO {self.elbo:.3f}, {evidence}"
            ]
        if self.tail_index <= 2.0:
            missing = "no mean and no variance" if self.tail_index <= 1.0 else "no variance"
            lines.append(f"heavy tails, of index {self.tail_index:.2g}: {missing}; read medians and quantiles")
        for run, text in ((True, "checked by"), (False, "not checked by")):
            if names := [check.name for check in self.checks if check.run == run]:
                lines.append(f"{text} {', '.join(names)}")
        return lines

    def with_beyond(self, share: float) -> "Certificate":
        """Where a share of the posterior lies beyond every draw.

        The weights contain between none and all of it, as a weight near the end stands for what lies beyond. So half
        of it is added, with the standard deviation of a uniform distribution.
        """
        share = float(share)  # a checkpoint compares types
        se = float(np.hypot(self.log_evidence_se, share / np.sqrt(12.0)))
        return self._replace(
            beyond=share, log_evidence=self.log_evidence + float(np.log1p(0.5 * share)), log_evidence_se=se
        )


def relative_ess(log_weights: Float[np.ndarray, " draws"]) -> float:
    """`(sum w)^2 / (n sum w^2)`, in [0, 1]; 0 where a log weight is NaN or infinite upwards, or none is finite."""
    log_weights = np.asarray(log_weights, np.float64)
    if not _usable(log_weights):
        return 0.0
    weights = np.exp(log_weights - log_weights.max())
    return float(min(weights.sum() ** 2 / (weights**2).sum() / weights.size, 1.0))  # rounding may lift it above 1


def log_mean(log_weights: Float[np.ndarray, " draws"]) -> float:
    """`log mean w`, the log evidence; a weight that is NaN counts as none."""
    log_weights = np.asarray(log_weights, np.float64)
    return float(logsumexp(np.where(np.isnan(log_weights), -np.inf, log_weights)) - np.log(log_weights.size))


def decided(log_weights: Float[np.ndarray, " draws"], settings: FlowVISettings = _DEFAULTS) -> bool:
    """Whether fewer draws than `certificate_draws` decide a verdict, beyond the errors of its figures.

    A tenth of them may show that a fit is far off, a quarter that it is nearly exact.
    """
    share = log_weights.size / settings.certificate_draws
    if share < DECIDING[0] or not _usable(log_weights):
        return False
    ess = relative_ess(log_weights)
    return ess < _FAR_OFF or (ess >= _NEARLY_EXACT and share >= DECIDING[1])


def certify(
    log_weights: Float[np.ndarray, " draws"], resolution: float = 0.0, settings: FlowVISettings = _DEFAULTS
) -> Certificate:
    """Judge a fit by its log weights (unnormalized: their mean carries the evidence).

    Args:
        log_weights: of at least 1,000 independent draws.
        resolution: spacing of floating-point numbers at the size of the log densities, in nats. Where it is coarse it
            is named as a possible cause, and from 1 nat on nothing is certified.
        settings: with the thresholds.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry 2024, arXiv 1507.02646.
    """
    log_weights = np.asarray(log_weights, np.float64)
    broken = np.isnan(log_weights)
    if broken.mean() <= settings.max_broken:
        log_weights = log_weights[~broken]
    n = log_weights.size
    if not _usable(log_weights):
        bad = int((np.isnan(log_weights) | (log_weights == np.inf)).sum())
        why = (
            f"{bad} of {n} log weights are NaN or infinite: where the fit has draws, the model's density is broken or "
            "a runtime check of the model fires (eqx.error_if, or a solver's error)"
        )
        if bad == 0:
            why = "the model's density is zero at every draw of the fit"
        return Certificate.unknown(why, n)
    _, khat = smooth(log_weights)
    ess = relative_ess(log_weights)
    log_total = logsumexp(log_weights)
    good = (khat < settings.max_khat and ess >= settings.min_ess) or ess >= settings.sufficient_ess
    certified = bool(good and resolution < _COARSEST)
    return Certificate(
        certified=certified,
        why="" if certified else _reason(khat, ess, resolution, settings),
        khat=khat,
        ess=ess,
        max_weight=float(np.exp(log_weights.max() - log_total)),
        elbo=float(log_weights.mean()),
        elbo_se=float(log_weights.std() / np.sqrt(n)) if np.isfinite(log_weights).all() else float("nan"),
        log_evidence=float(log_total - np.log(n)),
        log_evidence_se=float(np.sqrt((1 / ess - 1) / n)),
        num_draws=n,
    )


def resample(
    log_weights: Float[np.ndarray, " draws"], num_samples: int, rng: np.random.Generator
) -> Int[np.ndarray, " num_samples"]:
    """Indices of `num_samples` draws taken in proportion to their Pareto-smoothed weights, in random order.

    Systematic resampling: a draw of weight `w` is taken `floor` or `ceil` of `num_samples w` times. A weight that is
    NaN or infinite counts as none; where all are, so that nothing can be learned from them, each draw counts alike.
    """
    finite = np.isfinite(log_weights)
    log_weights = np.where(finite, log_weights, -np.inf) if finite.any() else np.zeros(log_weights.size)
    smoothed, _ = smooth(log_weights)
    cumulative = np.cumsum(np.exp(smoothed))
    positions = (np.arange(num_samples) + rng.uniform()) / num_samples * cumulative[-1]
    return rng.permutation(np.searchsorted(cumulative, positions))


def _usable(log_weights: np.ndarray) -> bool:
    return not np.isnan(log_weights).any() and np.isfinite(log_weights.max())


def _reason(khat: float, ess: float, resolution: float, settings: FlowVISettings) -> str:
    why = (
        f"k-hat {khat:.2f} and ESS {ess:.1%} (certified are k-hat < {settings.max_khat} with ESS >= "
        f"{settings.min_ess:.0%}, or ESS >= {settings.sufficient_ess:.0%}): the fit does not match the posterior"
    )
    if resolution >= _COARSEST:
        return f"log densities are resolved to {resolution:.1g} nat only: enable float64"
    if resolution > 0.05:
        why += f"; log densities are resolved to {resolution:.1g} nat only: enable float64"
    return why
