"""Independent fits of the same model and data, and how well they agree."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from numpyro_flows.arguments import require_counts, require_key
from numpyro_flows.inference.posterior import FlowPosterior

if TYPE_CHECKING:
    import pandas as pd

_DRAWS = 1_000  # of each fit
_SHOWN = 10  # rows of a summary


@dataclass(frozen=True, eq=False)
class SeveralFits:
    """Independent fits of one posterior; made by `FlowVI.run_several`.

    Attributes:
        posteriors: the fits.
        rhat: rank-normalised r-hat of each scalar, where 1,000 resampled draws of each fit are a chain. Above 1.01 the
            fits differ by more than chance. It is NaN for a scalar that never changes.
        log_evidence: log evidence of each fit.
        log_evidence_se: standard error of each log evidence.
        evidence_gap: largest difference between two log evidences, over the standard error of that difference. Values
            within about 3 can be due to chance alone.
        certified: whether all fits are certified.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import FlowVI
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> y = jax.numpy.array([1.0, 2.0, 3.0])
        >>> fits = FlowVI(model, progress_bar=False).run_several(jax.random.key(0), 3, y)
        >>> fits.certified, bool(fits.rhat["mu"] < 1.01)
        (True, True)
    """

    posteriors: tuple[FlowPosterior, ...]
    rhat: "pd.Series"
    log_evidence: Float[np.ndarray, " fits"]
    log_evidence_se: Float[np.ndarray, " fits"]
    evidence_gap: float
    certified: bool

    def __repr__(self) -> str:
        certified = sum(posterior.certified for posterior in self.posteriors)
        evidences = ", ".join(
            f"{value:.3f} +- {se:.3f}" for value, se in zip(self.log_evidence, self.log_evidence_se, strict=True)
        )
        return (
            f"SeveralFits({certified} of {len(self.posteriors)} certified, largest r-hat {self.rhat.max():.3f}\n"
            f"log evidences {evidences}; the largest gap is {self.evidence_gap:.1f} standard errors)"
        )

    def print_summary(self) -> None:
        """Print the verdict on all fits, why some are not certified, and the scalars with the largest r-hat."""
        print(self)
        for number, posterior in enumerate(self.posteriors):
            if not posterior.certified:
                print(f"fit {number} is not certified: {posterior.why}")
        print(self.rhat.nlargest(_SHOWN).to_frame().to_string(float_format="{:.3f}".format))


def run_several(
    run: Callable[..., FlowPosterior], rng_key: PRNGKeyArray, num: int, args: tuple, kwargs: dict[str, Any]
) -> SeveralFits:
    """`num` fits `run(key, *args, **kwargs)` with different keys, and how well they agree."""
    require_key(rng_key)
    require_counts(2, num=num)
    posteriors = tuple(run(key, *args, **kwargs) for key in jax.random.split(rng_key, num))
    log_evidence = np.array([posterior.log_evidence for posterior in posteriors])
    se = np.array([posterior.log_evidence_se for posterior in posteriors])
    pairs = combinations(range(num), 2)
    return SeveralFits(
        posteriors=posteriors,
        rhat=_rhat(posteriors, jax.random.fold_in(rng_key, num)),
        log_evidence=log_evidence,
        log_evidence_se=se,
        evidence_gap=float(max(abs(log_evidence[i] - log_evidence[j]) / np.hypot(se[i], se[j]) for i, j in pairs)),
        certified=all(posterior.certified for posterior in posteriors),
    )


def _rhat(posteriors: tuple[FlowPosterior, ...], rng_key: PRNGKeyArray) -> "pd.Series":
    import pandas as pd
    from arviz_stats.summary import summary

    from numpyro_flows.inference.to_arviz import Layout

    keys = jax.random.split(rng_key, len(posteriors))
    draws = [posterior.sample(key, _DRAWS) for posterior, key in zip(posteriors, keys, strict=True)]
    chains = {name: np.stack([np.asarray(fit[name], np.float64) for fit in draws]) for name in draws[0]}
    dataset = Layout.of(posteriors[0]).dataset(chains)
    with np.errstate(divide="ignore", invalid="ignore"):  # from ArviZ, for scalars that never change
        table = pd.DataFrame(summary(dataset, kind="diagnostics", round_to="none"))
    return pd.Series(table["r_hat"], name="rhat")
