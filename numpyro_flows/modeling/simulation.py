"""Draws from a model's prior, with data simulated from them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.handlers import block, seed, trace
from numpyro.infer.util import log_density

from numpyro_flows.arguments import described
from numpyro_flows.modeling.model_run import model_run

_BLOCK = 1_000  # draws at once


class Simulations(NamedTuple):
    """Draws of latent sites, and of the observed sites given them, each with a leading axis `num`."""

    latents: dict[str, Any]
    data: dict[str, Any]


class Simulator:
    """Draws of `p(latents) p(data | latents)`, by running a model without data.

    Args:
        model: a NumPyro model whose priors can all be sampled from.
        observed: names of the sites that are data.
        args: the model's arguments, with None in place of the data.
        kwargs: the model's keyword arguments, with None in place of the data.

    Raises:
        TypeError: if `observed` is not a list of names.
        ValueError: if the model has no such site, already has data for one, or has other observed sites or factors. In
            the last case draws of the prior would not be draws of the model. Also if a prior cannot be sampled from.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro_flows.modeling.simulation import Simulator
        >>> def model(y=None):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1).expand([3]), obs=y)
        >>> draws = Simulator(model, ["y"])(jax.random.key(0), 5)
        >>> draws.latents["mu"].shape, draws.data["y"].shape
        ((5,), (5, 3))
    """

    def __init__(
        self, model: Callable, observed: Sequence[str], args: tuple = (), kwargs: dict[str, Any] | None = None
    ):
        if isinstance(observed, str) or not all(isinstance(name, str) for name in observed):
            raise TypeError(f"observed expected a list of names of sites, for example ['y'], got {described(observed)}")
        self.observed = tuple(observed)
        self._model, self._args, self._kwargs = model, args, kwargs or {}
        self._run = lambda key: trace(seed(model, key)).get_trace(*self._args, **self._kwargs)
        try:
            with model_run():
                sites = {n: s for n, s in _abstract_sites(self._run).items() if s["type"] == "sample"}
        except NotImplementedError as error:
            raise ValueError(
                "expected a model whose sites can all be drawn from, got one with an improper prior"
            ) from error
        missing = [name for name in self.observed if name not in sites]
        if missing or not self.observed:
            raise ValueError(f"observed expected some of the model's sites {list(sites)}, got {list(self.observed)}")
        known = [name for name in sites if sites[name]["is_observed"]]
        if known:
            raise ValueError(
                f"expected a model that draws all its sites, got values or factors for {known}: call it with None in "
                "place of the data, and without numpyro.factor"
            )
        self.latents = tuple(name for name in sites if name not in self.observed)
        if not self.latents:
            raise ValueError(f"expected a model with latent sites, got only the observed {list(self.observed)}")
        self.shapes = {name: tuple(sites[name]["shape"]) for name in sites}
        self._block = jax.jit(jax.vmap(self._one))

    def __call__(self, rng_key: PRNGKeyArray, num: int) -> Simulations:
        """`num` independent draws."""
        keys = jax.random.split(rng_key, -(-num // _BLOCK) * _BLOCK if num > _BLOCK else num)
        with model_run():
            blocks = [jax.device_get(self._block(keys[i : i + _BLOCK])) for i in range(0, len(keys), _BLOCK)]
        latents, data = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num], *blocks)
        return Simulations(latents, data)

    def log_prior(self, latents: dict[str, Any]) -> Float[Array, " num"]:
        """The prior's log density of draws, each with a leading axis `num`."""
        alone = block(seed(self._model, 0), hide=list(self.observed))

        def one(latents: dict[str, Any]) -> Array:
            return jnp.asarray(log_density(alone, self._args, self._kwargs, latents)[0])

        with model_run():
            return jax.jit(jax.vmap(one))(latents)

    def _one(self, key: PRNGKeyArray) -> tuple[dict[str, Array], dict[str, Array]]:
        sites = self._run(key)
        latents, data = ({n: jnp.asarray(sites[n]["value"]) for n in names} for names in (self.latents, self.observed))
        return latents, data


def _abstract_sites(run: Callable[[PRNGKeyArray], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Shapes and types of a model's sites, without values: nothing is computed."""
    found: dict[str, dict[str, Any]] = {}

    def shapes(key: PRNGKeyArray) -> None:
        for name, site in run(key).items():
            shape = jnp.shape(site["value"]) if site["type"] == "sample" else ()
            found[name] = {"type": site["type"], "is_observed": site.get("is_observed", False), "shape": shape}

    jax.eval_shape(shapes, jax.random.key(0))
    return found


def with_data(model: Callable) -> Callable:
    """The model whose first argument are its data: a dict of the observed sites' values."""
    return partial(_conditioned, model)  # which can be pickled


def _conditioned(model: Callable, data: dict[str, Any], /, *args: Any, **kwargs: Any) -> Any:
    return numpyro.handlers.condition(model, data=data)(*args, **kwargs)
