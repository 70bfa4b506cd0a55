"""Posteriors of many data sets at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_flows.amortized.adapted import Base, Weighted, usable
from numpyro_flows.amortized.data import DataSets
from numpyro_flows.bijections import Given
from numpyro_flows.inference.certificate import Certificate, resample
from numpyro_flows.inference.judge import judge
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import Survey, Weighed
from numpyro_flows.inference.target import Target
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.modeling.model_run import model_run
from numpyro_flows.modeling.scoring import standard_normal_log_prob
from numpyro_flows.modeling.transforms import FlowTransform
from numpyro_flows.training.ahead import Later
from numpyro_flows.training.seeds import Seeds

if TYPE_CHECKING:
    import pandas as pd

_SETTINGS = FlowVISettings()
_ROUNDS = 3  # of draws for data sets that are refused
_AT_ONCE = 10_000  # draws at a time: more do not fit into a processor's cache


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
    model: Callable,
    flow: FlowDistribution,
    data_sets: DataSets,
    rng_key: PRNGKeyArray,
    data: dict[str, np.ndarray],
    args: tuple,
    kwargs: dict[str, Any],
    num_draws: int,
) -> tuple[ManyPosteriors, Base]:
    """Draws, weights and verdicts of data sets, by one compiled function for all, and the base that they are drawn by.

    Data sets that are refused are drawn again, with the base moved by what their weights say, some times. New draws are
    not taken where the first ones, of the flow itself, show a part of the posterior that the moved base lacks.
    """
    first_data = {name: values[0] for name, values in data.items()}
    num = len(next(iter(data.values())))
    target = Target(model, rng_key, (first_data, *args), kwargs)

    def one(inputs: tuple[dict[str, Array], Base | None, Weighted | None, Array]) -> _Drawn:
        data, base, first, key = inputs
        given = Given(flow.bijection, vector_of(flow, data_sets.condition(data)))
        z = jax.random.normal(key, (num_draws, target.dim)) if base is None else base.draw(key, num_draws)
        x, log_det = jax.vmap(given.transform_and_log_det)(z)
        with model_run():
            own = target.with_arguments((data, *args), kwargs)
            log_density = jax.vmap(own.log_density)(x)
            sites = jax.vmap(own.constrain)(x)  # by the model's supports under these arguments
        log_weights = log_density - (standard_normal_log_prob(z) if base is None else base.log_prob(z)) + log_det
        lacked = jnp.zeros(())
        if base is not None and first is not None:
            lacked = base.lacks(first, jax.nn.logsumexp(usable(log_weights)) - jnp.log(num_draws))
        sites = {name: sites[name] for name in target.site_shapes}
        return _Drawn(sites, log_density, Weighted(z, log_weights), lacked)

    every = Later(lambda inputs: jax.lax.map(one, inputs, batch_size=max(_AT_ONCE // num_draws, 1)))
    drawn = jax.tree.map(np.array, every((data, None, None, jax.random.split(rng_key, num))))  # arrays to write to
    certificates, base = drawn.certificates(), Base.standard(num, target.dim)
    refused = np.array([i for i, certificate in enumerate(certificates) if not certificate.certified], int)
    first = latest = _take(drawn.draws, refused)
    moved = _take(base, refused)
    for round_number in range(_ROUNDS):
        if not refused.size:
            break
        padded = np.resize(np.arange(refused.size), 1 << (refused.size - 1).bit_length())  # few shapes are compiled
        moved = jax.device_get(_moved(*_take((moved, latest), padded)))
        keys = jax.random.split(jax.random.fold_in(rng_key, round_number), padded.size)
        inputs = _take(data, refused[padded]), moved, _take(first, padded), keys
        again = jax.device_get(every(inputs))
        for row, (i, certificate) in enumerate(zip(refused, again.certificates())):
            if certificate.ess > certificates[i].ess and again.lacked[row] <= _SETTINGS.max_missed:
                certificates[i] = certificate
                for kept, new in zip(*map(jax.tree.leaves, ((drawn, base), (again, moved)))):
                    kept[i] = new[row]
        left = np.array([row for row, i in enumerate(refused) if not certificates[i].certified], int)
        refused, first, latest, moved = refused[left], *_take((first, again.draws, moved), left)
    log_weights = np.asarray(drawn.draws.log_weights, np.float64)
    return ManyPosteriors(drawn.sites, log_weights, _table(certificates)), base


class _Drawn(NamedTuple):
    """What one pass finds out of each data set; all arrays have a leading axis of data sets.

    sites: of the draws.
    log_density: of the draws, of the model.
    draws: in the flow's base, and their log weights.
    lacked: share of the posterior that a moved base lacks, by the first draws.
    """

    sites: dict[str, Any]
    log_density: Any
    draws: Weighted
    lacked: Any

    def certificates(self) -> list[Certificate]:
        unknown = np.zeros(0)  # the range of the draws, which only a search needs
        rows = zip(self.log_density, np.asarray(self.draws.log_weights))
        return [judge(Weighed(*row, unknown, unknown), Survey(), _SETTINGS) for row in rows]


@jax.jit
@jax.vmap
def _moved(base: Base, draws: Weighted) -> Base:
    return base.moved(jnp.asarray(draws.z), jnp.asarray(draws.log_weights))


def _take(tree: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _table(certificates: list[Certificate]) -> "pd.DataFrame":
    import pandas as pd

    columns = "certified", "khat", "ess", "log_evidence", "log_evidence_se", "why"
    return pd.DataFrame([{name: getattr(c, name) for name in columns} for c in certificates])


def vector_of(flow: FlowDistribution, condition: Any) -> Array:
    """A condition as the flow's bijection has it: one vector."""
    vector = FlowTransform(flow.bijection, condition).packed_condition
    assert vector is not None
    return vector
