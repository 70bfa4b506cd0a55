"""The posterior of one observation of a simulator, by rounds of simulations where the last posterior is."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from numpyro_flows.arguments import (
    as_numbers,
    described,
    require_callable,
    require_counts,
    require_instance,
    require_key,
)
from numpyro_flows.density.fit import fit_density
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.training.seeds import Seeds

_LEFT_OUT = 1e-3  # share of a posterior's draws that the next round's prior leaves out
_DRAWS = 10_000  # of a posterior, to find where that is; and of the prior, at once
_BEYOND = 0.1  # times the range of the simulations: data this far beyond it are not by chance
_MOST_BLOCKS = 1_000  # of draws of the prior, for one round

Simulator = Callable[[Float[np.ndarray, "num dim"]], ArrayLike]


def fit_sequentially(
    rng_key: PRNGKeyArray,
    prior: dist.Distribution,
    simulate: Simulator,
    data: ArrayLike,
    *,
    num_rounds: int = 4,
    num_simulations: int = 1_000,
    **options: Any,
) -> FlowDistribution:
    """`q(theta | data)` for one observation, when a simulation is too expensive for `AmortizedFlow` or many pairs.

    The first round draws parameters from the prior. Each later round draws from the prior cut to the region that holds
    all but 0.1% of the last posterior, so simulations go where the posterior is. In that region the cut prior is
    proportional to the prior. So the flow needs no correction: it is trained by maximum likelihood on the pairs of all
    rounds. The result is for this observation only, and it has no certificate, because a simulator has no density. If
    the data lie far outside the range of all simulations, a warning says so.

    Args:
        rng_key: random key.
        prior: a NumPyro distribution of vectors `(dim,)`.
        simulate: takes parameters `(num, dim)`, and returns data `(num, size)`, random ones.
        data: the observation, `(size,)`.
        num_rounds: number of rounds; 1 is `fit_density` on pairs.
        num_simulations: number of simulations in each round.
        options: of `fit_density`.

    Raises:
        TypeError: if an argument is of another kind.
        ValueError: for a number out of range, a prior that is not one of vectors, and data of another shape than
            simulated data.

    Source: Deistler, Goncalves, Macke 2022, arXiv 2210.04815.

    Example:
        >>> import jax, numpy as np, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import fit_sequentially
        >>> rng = np.random.default_rng(0)
        >>> prior = dist.Uniform(-3, 3).expand([2]).to_event(1)
        >>> flow = fit_sequentially(
        ...     jax.random.key(0),
        ...     prior,
        ...     lambda theta: theta + 0.1 * rng.normal(size=theta.shape),
        ...     [1.0, -2.0],
        ...     num_rounds=2,
        ...     progress_bar=False,
        ... )
        >>> np.abs(np.mean(flow.sample(jax.random.key(1), (1_000,)), 0) - np.array([1.0, -2.0])).max() < 0.1
        True
    """
    require_key(rng_key)
    require_instance(dist.Distribution, "dist.Normal(0, 1).expand([2]).to_event(1)", prior=prior)
    require_callable("lambda theta: ...", simulate=simulate)
    require_counts(num_rounds=num_rounds)
    require_counts(100, num_simulations=num_simulations)
    if prior.batch_shape or len(prior.event_shape) != 1:
        raise ValueError(
            f"prior expected a distribution of vectors, with event shape (dim,), got batch shape {prior.batch_shape} "
            f"and event shape {prior.event_shape}: .to_event(1) makes a batch an event"
        )
    seeds, observed = Seeds.of(rng_key), as_numbers(data, "data")
    if observed.ndim != 1 or not np.isfinite(observed).all():
        raise ValueError(f"data expected finite numbers of the shape (size,), got {described(data)}")
    thetas, datas, posterior = [], [], None
    for round_number in range(num_rounds):
        theta = _drawn(prior, posterior, num_simulations, seeds, round_number)
        simulated = as_numbers(simulate(theta.copy()), "what simulate returns")  # which may work in place
        if simulated.shape != (len(theta), *observed.shape):
            raise ValueError(
                f"simulate and data expected the shapes (num, size) and (size,), got {simulated.shape} for "
                f"{len(theta)} parameters, and {observed.shape}"
            )
        thetas.append(theta)
        datas.append(simulated)
        key = seeds.key(f"flow {round_number}")
        pairs = np.concatenate(thetas), np.concatenate(datas)
        flow = fit_density(key, pairs[0], condition=pairs[1], support=prior.support, **options)
        if not isinstance(flow, FlowDistribution):
            raise ValueError(f"prior expected a support of real numbers, got one of {described(prior.support)}")
        posterior = flow.given(observed)
    assert posterior is not None
    _warn_if_extrapolated(observed, np.concatenate(datas))
    return posterior


def _warn_if_extrapolated(observed: Float[np.ndarray, " size"], simulated: Float[np.ndarray, "num size"]) -> None:
    lowest, highest = simulated.min(0), simulated.max(0)
    beyond = np.maximum(lowest - observed, observed - highest) > _BEYOND * (highest - lowest)
    if beyond.any():
        i = int(np.argmax(beyond))
        warnings.warn(
            f"data expected values like those that were simulated, got {observed[i]:.4g} at place {i}, where all "
            f"simulations lie between {lowest[i]:.4g} and {highest[i]:.4g}: the flow extrapolates, and the posterior "
            "may be wrong or far too narrow; check the model, or take a wider prior",
            UserWarning,
            stacklevel=3,
        )


def _drawn(
    prior: dist.Distribution, posterior: FlowDistribution | None, num: int, seeds: Seeds, round_number: int
) -> Float[np.ndarray, "num dim"]:
    """Draws of the prior, where the posterior's density is not below that of nearly all of its own draws."""
    key = seeds.key(f"parameters {round_number}")
    if posterior is None:
        return np.asarray(prior.sample(key, (num,)), float)
    own = posterior.sample(seeds.key(f"region {round_number}"), (_DRAWS,))
    log_prob = jax.jit(posterior.log_prob)
    least = np.quantile(np.asarray(log_prob(own)), _LEFT_OUT)

    @jax.jit
    def block(key: Array) -> tuple[Array, Array]:
        theta = jnp.asarray(prior.sample(key, (_DRAWS,)))
        return theta, posterior.log_prob(theta) >= least

    found, number = [], 0
    for block_key in jax.random.split(key, _MOST_BLOCKS):
        theta, inside = map(np.asarray, block(block_key))
        found.append(theta[inside])
        number += len(found[-1])
        if number >= num:
            break
    if not number:
        raise ValueError(
            f"expected a prior that reaches the posterior, got none of {_MOST_BLOCKS * _DRAWS:,} draws there: "
            "take fewer rounds or a narrower prior"
        )
    return np.concatenate(found)[:num].astype(float)
