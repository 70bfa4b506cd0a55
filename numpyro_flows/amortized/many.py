"""Posteriors of many data sets at once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from numpyro_flows.amortized.adapted import Base, Weighted
from numpyro_flows.amortized.passes import Drawn, Inputs, Passes, take
from numpyro_flows.inference.certificate import Certificate, resample
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.training.seeds import Seeds

if TYPE_CHECKING:
    import pandas as pd

_SETTINGS = FlowVISettings()
_ROUNDS = 3  # of draws for data sets that are refused


@dataclass(frozen=True, eq=False)
class ManyPosteriors:
    """Posteriors of many data sets; made by `AmortizedPosterior.posteriors`.

    Attributes:
        draws: of all latent sites, `(data sets, draws, *site)`, of the flow, and where these are refused, of the
            flow with its base moved by what their weights say.
        log_weights: their importance weights `log p(latents, data) - log q(latents | data)`, `(data sets, draws)`.
        table: a row of the verdict for each data set: `certified`, `khat`, `ess`, `log_evidence`, `log_evidence_se`,
            `why`.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import AmortizedFlow
        >>> def model(y=None):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1), obs=y)
        >>> amortized = AmortizedFlow(model, observed=["y"], num_simulations=2_000, progress_bar=False)
        >>> amortized = amortized.fit(jax.random.key(0))
        >>> many = amortized.posteriors(jax.random.key(1), {"y": jax.numpy.array([-1.0, 0.0, 1.0])})
        >>> many.sample(jax.random.key(2), 10)["mu"].shape
        (3, 10)
    """

    draws: dict[str, np.ndarray]
    log_weights: Float[np.ndarray, "sets draws"]
    table: "pd.DataFrame"

    @property
    def certified(self) -> Bool[np.ndarray, " sets"]:
        """Which verdicts are good."""
        return self.table["certified"].to_numpy(bool)

    def sample(self, rng_key: PRNGKeyArray, num_samples: int) -> dict[str, Float[np.ndarray, "sets num_samples *site"]]:
        """Draws of each data set, importance-resampled."""
        rng = Seeds.of(rng_key).rng("resampling")
        index = np.stack([resample(row, num_samples, rng) for row in self.log_weights])
        return {name: np.stack([one[i] for one, i in zip(values, index)]) for name, values in self.draws.items()}

    def __repr__(self) -> str:
        return f"ManyPosteriors({self.certified.sum()} of {len(self.certified)} certified)"


def many_posteriors(
    passes: Passes, rng_key: PRNGKeyArray, data: dict[str, np.ndarray], num_draws: int
) -> tuple[ManyPosteriors, Base]:
    """Draws, weights and verdicts of data sets, and the base that the draws come from.

    Data sets that are refused are drawn again, with the base moved by what their weights say, some times. New draws are
    not taken where the first ones, of the flow itself, show a part of the posterior that the moved base lacks.
    """
    keys = jax.random.split(rng_key, len(next(iter(data.values()))))
    drawn, certificates = passes(Inputs(data, keys), num_draws)
    base = Base.standard(len(keys), passes.target.dim)
    refused = np.array([i for i, certificate in enumerate(certificates) if not certificate.certified], int)
    if refused.size:
        first = Weighted(passes.normals(keys[refused], num_draws), drawn.log_weights[refused])
        _draw_again(passes, rng_key, data, (drawn, certificates, base), refused, first)
    log_weights = drawn.log_weights.astype(np.float64)
    return ManyPosteriors(drawn.sites, log_weights, _table(certificates)), base


def _draw_again(
    passes: Passes,
    rng_key: PRNGKeyArray,
    data: dict[str, np.ndarray],
    results: tuple[Drawn, list[Certificate], Base],
    refused: np.ndarray,
    first: Weighted,
) -> None:
    """Draw refused data sets from moved bases, and write into the results what is better."""
    drawn, certificates, base = results
    num_draws = first.log_weights.shape[1]
    moved, latest = take(base, refused), first
    for round_number in range(_ROUNDS):
        padded = np.resize(np.arange(refused.size), 1 << (refused.size - 1).bit_length())  # few shapes are compiled
        moved = take(jax.device_get(_moved(*take((moved, latest), padded))), np.s_[: refused.size])
        keys = jax.random.split(jax.random.fold_in(rng_key, round_number), refused.size)
        again, new = passes(Inputs(take(data, refused), keys, moved, first), num_draws)
        for row, (i, certificate) in enumerate(zip(refused, new)):
            if certificate.ess > certificates[i].ess and again.lacked[row] <= _SETTINGS.max_missed:
                certificates[i] = certificate
                pairs = (drawn, base), (again._replace(z=None), moved)
                for kept, better in zip(*map(jax.tree.leaves, pairs)):
                    kept[i] = better[row]
        left = np.array([row for row, i in enumerate(refused) if not certificates[i].certified], int)
        if not left.size:
            return
        latest = Weighted(again.z, again.log_weights)
        refused, first, latest, moved = refused[left], *take((first, latest, moved), left)


@jax.jit
@jax.vmap
def _moved(base: Base, draws: Weighted) -> Base:
    return base.moved(jnp.asarray(draws.z), jnp.asarray(draws.log_weights))


def _table(certificates: list[Certificate]) -> "pd.DataFrame":
    import pandas as pd

    columns = "certified", "khat", "ess", "log_evidence", "log_evidence_se", "why"
    return pd.DataFrame([{name: getattr(c, name) for name in columns} for c in certificates])
