"""NumPyro's guides and FlowJAX on the same posterior, with as many gradients as FlowVI took, or more.

They start in the raw unconstrained space, as they would for a user.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flowjax.distributions import Normal
from flowjax.flows import coupling_flow
from flowjax.train import fit_to_key_based_loss
from flowjax.train.losses import ElboLoss
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal, AutoContinuous, AutoIAFNormal, AutoMultivariateNormal

from benchmarks.posteriordb.models import Posterior
from benchmarks.posteriordb.scoring import Row, Sample, score_weighted
from numpyro_flows.inference.target import Target

NUM_PARTICLES = 128
MIN_STEPS = 1000  # where FlowVI needed fewer gradients, so that they are not far from where they could be
LEARNING_RATE = 5e-3
CLIP = 10.0  # NumPyro's `ClippedAdam` has the same
_BLOCK = 1000  # draws made at a time


def guide(
    make: Callable[[Callable], AutoContinuous], posterior: Posterior, seed: int, gradient_evaluations: int
) -> Row:
    """An autoguide by NumPyro's SVI: clipped Adam, a one-cycle learning rate, steps that are not finite skipped."""
    num_steps = _num_steps(gradient_evaluations)
    start = time.perf_counter()
    autoguide = make(posterior.model)
    schedule = optax.cosine_onecycle_schedule(num_steps, LEARNING_RATE)
    optimizer = optax.chain(optax.clip(CLIP), optax.adam(schedule))
    svi = SVI(posterior.model, autoguide, optimizer, Trace_ELBO(NUM_PARTICLES))
    state = svi.init(jax.random.key(seed), *posterior.args)

    def train(state: Any) -> Any:
        return jax.lax.scan(lambda state, _: svi.stable_update(state, *posterior.args), state, None, num_steps)[0]

    compiled_from = time.perf_counter()
    train = jax.jit(train).lower(state).compile()
    compile_seconds = time.perf_counter() - compiled_from
    params = svi.get_params(jax.block_until_ready(train(state)))
    seconds = time.perf_counter() - start

    def draw(key: Any) -> tuple:
        q = autoguide.get_posterior(params)
        x, intermediates = q.sample_with_intermediates(key, (_BLOCK,))
        # an autoregressive flow knows the density of its own draws only
        known = isinstance(q, dist.TransformedDistribution)
        return x, q.log_prob(x, intermediates) if known else q.log_prob(x)

    return {
        **score_weighted(_sampler(posterior, draw), posterior.reference, jax.random.key(seed + 1000), seconds),
        "seconds": seconds,
        "compile_seconds": compile_seconds,
        "gradient_evaluations": num_steps * NUM_PARTICLES,
    }


def flowjax_coupling(posterior: Posterior, seed: int, gradient_evaluations: int) -> Row:
    """FlowJAX's affine coupling flow with its default sizes, by the ELBO with path-derivative gradients."""
    num_steps = _num_steps(gradient_evaluations)
    start = time.perf_counter()
    target = Target(posterior.model, jax.random.key(0), posterior.args)
    key_flow, key_fit = jax.random.split(jax.random.key(seed))
    untrained = coupling_flow(key_flow, base_dist=Normal(jnp.zeros(target.dim)), invert=False)
    loss = ElboLoss(lambda x: target.log_density(jnp.asarray(x)), NUM_PARTICLES, stick_the_landing=True)
    flow, _ = fit_to_key_based_loss(
        key_fit, untrained, loss_fn=loss, steps=num_steps, learning_rate=LEARNING_RATE, show_progress=False
    )
    jax.block_until_ready(eqx.filter(flow, eqx.is_array))
    seconds = time.perf_counter() - start
    sample = _sampler(posterior, lambda key: flow.sample_and_log_prob(key, (_BLOCK,)))
    return {
        **score_weighted(sample, posterior.reference, jax.random.key(seed + 1000), seconds),
        "seconds": seconds,
        "compile_seconds": "",
        "gradient_evaluations": num_steps * NUM_PARTICLES,
    }


PEERS: dict[str, Callable[[Posterior, int, int], Row]] = {
    "AutoMultivariateNormal": partial(guide, AutoMultivariateNormal),
    "AutoIAFNormal": partial(guide, partial(AutoIAFNormal, hidden_dims=[64, 64])),
    "AutoBNAFNormal": partial(guide, AutoBNAFNormal),
    "flowjax_coupling": flowjax_coupling,
}


def _num_steps(gradient_evaluations: int) -> int:
    return max(MIN_STEPS, round(gradient_evaluations / NUM_PARTICLES))


def _sampler(posterior: Posterior, draw: Callable[[Any], tuple]) -> Sample:
    """Weighted draws of the sites, in compiled blocks, from `draw`: key -> unconstrained draws, their log density."""
    target = Target(posterior.model, jax.random.key(0), posterior.args)

    @jax.jit
    def draw_block(key: Any) -> tuple:
        x, log_q = draw(key)
        return jax.vmap(target.constrain)(x), jax.vmap(target.log_density)(x) - log_q

    def sample(key: Any, num: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        blocks = [jax.device_get(draw_block(key)) for key in jax.random.split(key, -(-num // _BLOCK))]
        sites, log_weights = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num], *blocks)
        return sites, log_weights.astype(np.float64)

    return sample
