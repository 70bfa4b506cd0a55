"""Posterior draws of many data sets, by each kind of method that calibration is checked of."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base.array import array_stats
from jaxtyping import PRNGKeyArray
from numpyro.infer import HMC, MCMC

from numpyro_flows.amortized.posterior import AmortizedPosterior
from numpyro_flows.arguments import described
from numpyro_flows.inference.flow_vi import FlowVI
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.modeling.model_run import model_run
from numpyro_flows.modeling.simulation import with_data

Data = Any  # a tree of arrays with a leading axis of data sets
Draws = Any  # of one data set: a dict of sites, or an array; or a text that says why there are none
type Draw = Callable[[PRNGKeyArray, Any], Any]
type Method = FlowVI | MCMC | AmortizedPosterior | FlowDistribution | Draw

_POOL = 10  # weighted draws for each that importance resampling keeps, so that it hardly repeats any
_LEAST_POOL = 1_000
_AT_ONCE = 20  # data sets between two updates of the progress bar
_LEAST_OF_CHAINS = 10  # draws that are kept of chains that hardly move


def draws_of(
    method: Any, key: PRNGKeyArray, data: Data, args: tuple, kwargs: dict[str, Any], num_draws: int
) -> Iterator[Draws]:
    """Nearly independent posterior draws of each data set, each site `(draws, *site)`.

    Raises: TypeError, where `method` is of no kind that is known.
    """
    num = len(jax.tree.leaves(data)[0])
    for first in range(0, num, _AT_ONCE):
        some = jax.tree.map(lambda leaf, first=first: np.asarray(leaf)[first : first + _AT_ONCE], data)
        one_key = jax.random.fold_in(key, first)
        if isinstance(method, FlowVI):
            yield from _by_flow_vi(method, one_key, some, args, kwargs, num_draws)
        elif isinstance(method, AmortizedPosterior):
            yield from _by_amortized(method, one_key, some, args, kwargs, num_draws)
        elif isinstance(method, FlowDistribution):
            draws = method.given(jax.tree.map(jnp.asarray, some)).sample(one_key, (num_draws,))
            yield from (jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[:, i], draws) for i in range(_length(some)))
        else:
            yield from (method(k, one) for k, one in zip(jax.random.split(one_key, _length(some)), _each(some)))


def prepared(method: Any, args: tuple, kwargs: dict[str, Any], num_draws: int) -> Any:
    """The method as `draws_of` takes it, made once, so that it is compiled once.

    Raises:
        TypeError: where it is of no kind that is known.
        ValueError: where chains have fewer draws than `num_draws`, or no model, or `FlowVI` has a checkpoint.
    """
    if isinstance(method, type) or not (
        callable(method) or isinstance(method, FlowVI | MCMC | AmortizedPosterior | FlowDistribution)
    ):
        raise TypeError(
            "method expected a FlowVI(model), an MCMC(NUTS(model), ...), an AmortizedPosterior, a conditional "
            f"FlowDistribution or a function draw(rng_key, data), got {described(method)}"
        )
    if isinstance(method, FlowVI) and method.watch.checkpoint is not None:
        raise ValueError("method expected a FlowVI without a checkpoint, as one file is for one fit")
    if isinstance(method, MCMC):
        return _chains(method, args, kwargs, num_draws)
    return _with_data(method) if isinstance(method, FlowVI) else method


def _with_data(method: FlowVI) -> FlowVI:
    """The same settings for the model whose first argument are the data."""
    method = copy.copy(method)
    method.model = with_data(method.model)
    if method.guide is not None:
        method.guide = copy.copy(method.guide)
        method.guide.model = method.model
    method.watch = method.watch._replace(progress_bar=False)
    return method


def _by_flow_vi(
    method: FlowVI, key: PRNGKeyArray, data: Data, args: tuple, kwargs: dict[str, Any], num_draws: int
) -> Iterator[Draws]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* fits are not certified", UserWarning)
        fits = method.run_many(key, data, *args, in_axes=[0, *(None for _ in args)], **kwargs)
    if len(fits.posteriors) < _length(data):  # interrupted: a later fit would meet the true values of another data set
        raise KeyboardInterrupt
    for number, (posterior, certified, why) in enumerate(zip(fits.posteriors, fits.certified, fits.table["why"])):
        if posterior is None or not certified:
            yield f"not certified: {why}"
        else:
            draws = posterior.sample(jax.random.fold_in(key, number), _POOL * num_draws)
            yield {name: np.asarray(values)[::_POOL] for name, values in draws.items()}


def _by_amortized(
    method: AmortizedPosterior, key: PRNGKeyArray, data: Data, args: tuple, kwargs: dict[str, Any], num_draws: int
) -> Iterator[Draws]:
    pool = max(_LEAST_POOL, _POOL * num_draws)
    many = method.posteriors(key, data, *args, num_draws=pool, **kwargs)
    draws = many.sample(jax.random.fold_in(key, 1), num_draws)
    for number, (certified, why) in enumerate(zip(many.certified, many.table["why"])):
        yield {name: values[number] for name, values in draws.items()} if certified else f"not certified: {why}"


def _chains(method: MCMC, args: tuple, kwargs: dict[str, Any], num_draws: int) -> Callable[[PRNGKeyArray, Any], Any]:
    """NumPyro's chains of one data set, thinned by their own ESS."""
    kernel = method.sampler
    if not isinstance(kernel, HMC) or kernel.model is None:
        raise TypeError(f"method expected an MCMC of NUTS(model) or HMC(model), got one of {described(kernel)}")
    total = method.num_chains * (method.num_samples // method.thinning)
    if total < num_draws:
        raise ValueError(f"method expected an MCMC with at least num_draws={num_draws} draws, got {total}")
    settings: dict[str, Any] = {
        "num_warmup": method.num_warmup,
        "num_samples": method.num_samples,
        "thinning": method.thinning,
    }

    @jax.jit
    def run(key: PRNGKeyArray, data: Any) -> dict[str, Any]:
        mcmc = MCMC(
            kernel.wrap_model(with_data),
            **settings,
            num_chains=method.num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(key, data, *args, **kwargs)
        return mcmc.get_samples(group_by_chain=True)

    def draw(key: PRNGKeyArray, data: Any) -> dict[str, Any]:
        with model_run():
            draws = jax.device_get(run(key, data))
        flat = [values.reshape(*values.shape[:2], -1) for values in draws.values()]
        worth = array_stats.ess(np.concatenate(flat, 2), chain_axis=0, draw_axis=1, method="bulk")
        finite = worth[np.isfinite(worth)]  # of a scalar that never changes it is none
        num = int(np.clip(finite.min() if finite.size else num_draws, _LEAST_OF_CHAINS, num_draws))
        kept = np.linspace(0, total - 1, num).round().astype(int)
        return {name: values.reshape(total, *values.shape[2:])[kept] for name, values in draws.items()}

    return draw


def _length(data: Data) -> int:
    return len(jax.tree.leaves(data)[0])


def _each(data: Data) -> Iterator[Any]:
    return (jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), data) for i in range(_length(data)))
