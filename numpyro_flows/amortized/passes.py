"""Passes of an amortised flow over many data sets: draws, importance weights and a verdict for each."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_flows.amortized.adapted import Base, Weighted, usable
from numpyro_flows.amortized.data import DataSets
from numpyro_flows.bijections import Given
from numpyro_flows.inference.certificate import Certificate
from numpyro_flows.inference.fingerprint import fingerprint
from numpyro_flows.inference.judge import judge
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import Survey, Weighed
from numpyro_flows.inference.target import Target
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.modeling.model_run import model_run
from numpyro_flows.modeling.scoring import standard_normal_log_prob
from numpyro_flows.modeling.transforms import FlowTransform
from numpyro_flows.training.ahead import Later
from numpyro_flows.training.jax_context import with_jax_context

_SETTINGS = FlowVISettings()
_AT_ONCE = 10_000  # draws at a time: more do not fit into a processor's cache
_CHUNK = 32  # data sets of one call of the compiled function


class Inputs(NamedTuple):
    """Data sets to draw the posteriors of; every array has a leading axis of data sets.

    data: values of the observed sites.
    keys: random keys.
    base: base of the flow that the draws come from; None for the standard normal.
    first: earlier draws, by which it is checked what a moved base lacks.
    """

    data: dict[str, Any]
    keys: Any
    base: Base | None = None
    first: Weighted | None = None


class Drawn(NamedTuple):
    """The result of a pass; every array has a leading axis of data sets.

    sites: draws of the latent sites.
    log_density: the model's log density of each draw.
    log_weights: the log importance weight of each draw.
    lacked: share of the posterior that a moved base lacks, by the first draws.
    z: the draws of a moved base; None for those of the standard normal, which `Passes.normals` makes again.
    """

    sites: dict[str, Any]
    log_density: Any
    log_weights: Any
    lacked: Any
    z: Any


class Passes:
    """Draws of a flow given data, with importance weights by the model's density: compiled once for many data sets.

    The model's arguments other than the data are `args` and `kwargs`; `data` is one data set.
    """

    def __init__(
        self,
        model: Callable,
        flow: FlowDistribution,
        data_sets: DataSets,
        data: dict[str, np.ndarray],
        args: tuple,
        kwargs: dict[str, Any],
    ):
        data = {name: np.array(values) for name, values in data.items()}  # the caller may change his own
        self.target = Target(model, jax.random.key(0), (data, *args), kwargs)
        self._flow, self._data_sets, self._args, self._kwargs = flow, data_sets, args, kwargs
        self._fingerprint = fingerprint(args, kwargs)
        self._functions: dict[int, Later] = {}

    def __call__(self, inputs: Inputs, num_draws: int) -> tuple[Drawn, list[Certificate]]:
        """Draws and verdicts of all data sets, some data sets at a time."""
        num = len(inputs.keys)
        size = min(_CHUNK, 1 << (num - 1).bit_length())  # few shapes are compiled
        if num_draws not in self._functions:
            self._functions[num_draws] = Later(self._function(num_draws))
        function = self._functions[num_draws]

        def one_chunk(start: int) -> tuple[Drawn, list[Certificate]]:
            rows = np.resize(np.arange(start, min(start + size, num)), size)
            return _judged(jax.device_get(function(take(inputs, rows))), min(size, num - start))

        first, certificates = one_chunk(0)  # compiles
        whole = jax.tree.map(lambda leaf: np.empty((num, *leaf.shape[1:]), leaf.dtype), first)
        _write(whole, 0, first)

        def written(start: int) -> list[Certificate]:
            drawn, certificates = one_chunk(start)
            _write(whole, start, drawn)
            return certificates

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for more in pool.map(with_jax_context(written), range(size, num, size)):
                certificates += more
        return whole, certificates

    def are_for(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether these are the model's arguments here, with equal numbers; of other objects nobody can know."""
        return not self._fingerprint.unknown and self._fingerprint == fingerprint(args, kwargs)

    def normals(self, keys: PRNGKeyArray, num_draws: int) -> Float[np.ndarray, "sets num dim"]:
        """The standard normal draws of a first pass with these keys."""
        shape = num_draws, self.target.dim
        return np.stack([np.asarray(jax.random.normal(key, shape)) for key in keys])

    def _function(self, num_draws: int) -> Callable[[Inputs], Drawn]:
        def one(inputs: Inputs) -> Drawn:
            data, key, base, first = inputs
            given = Given(self._flow.bijection, vector_of(self._flow, self._data_sets.condition(data)))
            shape = num_draws, self.target.dim
            z = jax.random.normal(key, shape) if base is None else base.draw(key, num_draws)
            x, log_det = jax.vmap(given.transform_and_log_det)(z)
            with model_run():
                own = self.target.with_arguments((data, *self._args), self._kwargs)
                log_density = jax.vmap(own.log_density)(x)
                sites = jax.vmap(own.constrain)(x)  # by the model's supports under these arguments
            log_weights = log_density - (standard_normal_log_prob(z) if base is None else base.log_prob(z)) + log_det
            lacked = jnp.zeros(())
            if base is not None and first is not None:
                lacked = base.lacks(first, jax.nn.logsumexp(usable(log_weights)) - jnp.log(num_draws))
            sites = {name: sites[name] for name in self.target.site_shapes}
            return Drawn(sites, log_density, log_weights, lacked, None if base is None else z)

        return lambda inputs: jax.lax.map(one, inputs, batch_size=max(_AT_ONCE // num_draws, 1))


def take(tree: Any, rows: np.ndarray | slice) -> Any:
    """Some rows of every array."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def vector_of(flow: FlowDistribution, condition: Any) -> Array:
    """A condition as the flow's bijection has it: one vector."""
    vector = FlowTransform(flow.bijection, condition).packed_condition
    assert vector is not None
    return vector


def _judged(drawn: Drawn, num: int) -> tuple[Drawn, list[Certificate]]:
    """The first data sets of a chunk, with their verdicts; the others are repetitions."""
    drawn = take(drawn, np.s_[:num])
    unknown = np.zeros(0)  # the range of the draws, which only a search needs
    rows = zip(drawn.log_density, drawn.log_weights)
    return drawn, [judge(Weighed(*row, unknown, unknown), Survey(), _SETTINGS) for row in rows]


def _write(whole: Drawn, start: int, part: Drawn) -> None:
    for to, leaf in zip(*map(jax.tree.leaves, (whole, part))):
        to[start : start + len(leaf)] = leaf
