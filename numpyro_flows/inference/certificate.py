"""What importance weights say about a fit: effective sample size, Pareto k-hat, evidence, and a verdict."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from numpyro_flows.inference.psis import smooth
from numpyro_flows.inference.settings import FlowVISettings

_DEFAULTS = FlowVISettings()
DECIDING = (0.1, 0.25, 0.5)  # shares of the draws after which a verdict may be clear
_FAR_OFF = 0.1  # an ESS that further draws do not raise above `min_ess`
# An ESS above `sufficient_ess`. With 0.97 and a k-hat below 0.5, 5,000 draws certified up to a third of weights with a
# rare tail of shape 0.8 to 1 that 20,000 draws refuse. With this value, none of 900 were certified.
_NEARLY_EXACT = 0.992
_COARSEST = 1.0  # nats: a certificate needs log densities with a finer resolution


class Draws(NamedTuple):
    """Draws `x` from a fit q with `log p(x, data)` and `log p(x, data) - log q(x)`."""

    x: Float[np.ndarray, "draws dim"]
    log_density: Float[np.ndarray, " draws"]
    log_weight: Float[np.ndarray, " draws"]


class Check(NamedTuple):
    """One check of a fit.

    name: what was checked.
    found: the result; "not run" and the reason if the check did not run.
    cost: number of evaluations of the density.
    blind: what the check cannot detect.
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

    Weights cannot detect a mode that q misses, because q has no draws there. So the verdict includes other checks.

    Attributes:
        certified: whether `khat < 0.7 and ess >= 0.5`, or `ess >= 0.99`, and all other checks are passed. Log densities
            must be resolved to less than 1 nat.
        why: the reason if the fit is not certified; else empty.
        khat: Pareto shape of the largest weights. Above 0.7 no practical number of draws gives reliable estimates. NaN
            if the weights are too nearly constant to estimate it.
        ess: effective sample size over number of draws, `(sum w)^2 / (n sum w^2)`, in [0, 1].
        max_weight: largest normalised weight.
        elbo: mean of `log w`.
        elbo_se: standard error of `elbo`.
        log_evidence: log of the model's evidence: `log mean w`, plus half of the mass that lies beyond every draw.
        log_evidence_se: standard error of `log_evidence`, by the delta method. It includes the mass that the fit may
            lack.
        num_draws: number of weights.
        tail_index: smallest tail index on rays from the centre, on the unconstrained scale. Beyond `r` the probability
            falls like `r^-index`. At 2 or less there is no variance, at 1 or less no mean: use medians and quantiles.
            Infinite for ordinary tails.
        beyond: share of the posterior that lies beyond every draw, minus the share expected by chance. It counts the
            ends of sites that are constrained or are scales of others.
        checks: the checks behind the verdict, with what each of them cannot detect.
        by: "weights", or "mcmc" if the draws come from Markov chains. Chains are certified if r-hat < 1.01 and bulk and
            tail ESS > 400. For chains `khat`, `ess`, `max_weight` and `elbo` are NaN.
        rhat: largest rank-normalised r-hat of an unconstrained coordinate; NaN without chains.
        ess_bulk: smallest bulk ESS of the chains, in draws.
        ess_tail: smallest tail ESS of the chains, in draws.

    Example:
        >>> import numpy as np
        >>> from numpyro_flows.inference.certificate import certify
        >>> certify(np.zeros(1000)).certified  # all weights are equal
        True
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
        """The certificate of a fit without usable weights."""
        nan = float("nan")
        return cls(False, why, float("inf"), 0.0, 1.0, nan, nan, nan, nan, num_draws)

    def __str__(self) -> str:
        return "\n".join(["CERTIFIED" if self.certified else f"NOT CERTIFIED: {self.why}", *self.figures()])

    def figures(self) -> list[str]:
        """The figures behind the verdict, as lines of text."""
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
        """The certificate if a share of the posterior lies beyond every draw.

        The weights include between none and all of this share, because a weight near the end may stand for the mass
        beyond it. So half of the share is added, with the standard deviation of a uniform distribution.
        """
        share = float(share)  # a checkpoint compares types
        se = float(np.hypot(self.log_evidence_se, share / np.sqrt(12.0)))
        return self._replace(
            beyond=share, log_evidence=self.log_evidence + float(np.log1p(0.5 * share)), log_evidence_se=se
        )


def relative_ess(log_weights: Float[np.ndarray, " draws"]) -> float:
    """`(sum w)^2 / (n sum w^2)`, in [0, 1]; 0 if a log weight is NaN or +inf, or none is finite."""
    log_weights = np.asarray(log_weights, np.float64)
    if not _usable(log_weights):
        return 0.0
    weights = np.exp(log_weights - log_weights.max())
    return float(min(weights.sum() ** 2 / (weights**2).sum() / weights.size, 1.0))  # rounding may lift it above 1


def log_mean(log_weights: Float[np.ndarray, " draws"]) -> float:
    """`log mean w`, the log evidence; a weight that is NaN counts as 0."""
    log_weights = np.asarray(log_weights, np.float64)
    return float(logsumexp(np.where(np.isnan(log_weights), -np.inf, log_weights)) - np.log(log_weights.size))


def decided(log_weights: Float[np.ndarray, " draws"], settings: FlowVISettings = _DEFAULTS) -> bool:
    """Whether the verdict is clear from fewer draws than `certificate_draws`, beyond the errors of its figures.

    A tenth of the draws can show that a fit is far off, a quarter that it is nearly exact.
    """
    share = log_weights.size / settings.certificate_draws
    if share < DECIDING[0] or not _usable(log_weights):
        return False
    ess = relative_ess(log_weights)
    return ess < _FAR_OFF or (ess >= _NEARLY_EXACT and share >= DECIDING[1])


def certify(
    log_weights: Float[np.ndarray, " draws"], resolution: float = 0.0, settings: FlowVISettings = _DEFAULTS
) -> Certificate:
    """Check a fit by its log weights.

    Args:
        log_weights: log weights of at least 1,000 independent draws, unnormalized: their mean gives the evidence.
        resolution: spacing of floating-point numbers at the size of the log densities, in nats. A coarse one is named
            as a possible cause. At 1 nat or more nothing is certified.
        settings: the thresholds.

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
    largest = log_weights.max()
    log_total = largest + np.log(np.exp(log_weights - largest).sum())
    good = (khat < settings.max_khat and ess >= settings.min_ess) or ess >= settings.sufficient_ess
    certified = bool(good and resolution < _COARSEST)
    return Certificate(
        certified=certified,
        why="" if certified else _reason(khat, ess, resolution, settings),
        khat=khat,
        ess=ess,
        max_weight=float(np.exp(largest - log_total)),
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

    Systematic resampling takes a draw of weight `w` either `floor` or `ceil` of `num_samples w` times. A weight that is
    NaN or infinite counts as 0. If no weight is finite, all draws count equally.
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
        f"k-hat {khat:.2f} and ESS {ess:.1%} (a certificate needs k-hat < {settings.max_khat} with ESS >= "
        f"{settings.min_ess:.0%}, or ESS >= {settings.sufficient_ess:.0%}): the fit does not match the posterior"
    )
    if resolution >= _COARSEST:
        return f"log densities are resolved to {resolution:.1g} nat only: enable float64"
    if resolution > 0.05:
        why += f"; log densities are resolved to {resolution:.1g} nat only: enable float64"
    return why
