"""Group effects that are not normal: a hierarchical model whose prior is a flow, beside one whose prior is normal.

    uv run examples/group_effects.py

Patients are measured eight times each. Each patient has an intercept and a slope; one in three responds to the
treatment, and the more severe the illness, the larger the response. So the effects form two clusters, one of them bent.
`SVI` learns the prior of the effects together with their posterior, once with a normal prior and once with a spline
flow. New patients, whom neither model has seen, are then predicted by both. At last the flow's prior is fixed, and
`FlowVI` gives the effects of one new patient, with a verdict.
"""

import argparse
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from numpyro_flows import FlowDistribution, FlowPosterior, FlowVI, flows
from numpyro_flows.bijections import AbstractBijection, Chain, TriangularAffine

TIMES = jnp.linspace(-1.0, 1.0, 8)
NOISE, SHARE = 0.4, 1 / 3
NUM_PATIENTS, NUM_NEW = 400, 400
NUM_STEPS, NUM_DRAWS = 2_000, 20_000

Measurements = Float[Array, "patients 8"]


def simulate(seed: int, num: int) -> Measurements:
    rng = np.random.default_rng(seed)
    severity = rng.normal(size=num)
    responds = rng.uniform(size=num) < SHARE
    slope = np.where(responds, -2.0 - 0.5 * severity**2, 0.2 * severity) + 0.2 * rng.normal(size=num)
    mean = severity[:, None] + slope[:, None] * np.asarray(TIMES)
    return jnp.asarray(mean + NOISE * rng.normal(size=mean.shape))


def model(bijection: AbstractBijection, y: Measurements | None = None, num: int = 1) -> None:
    prior = FlowDistribution(eqx_module("prior", bijection))
    noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("patients", num if y is None else len(y)):
        effects: Any = numpyro.sample("effects", prior)
        mean = effects[..., :1] + effects[..., 1:] * TIMES
        numpyro.sample("y", dist.Normal(mean, noise).to_event(1), obs=y)


def priors(key: Array) -> dict[str, AbstractBijection]:
    """Before training both are standard normal."""
    affine = TriangularAffine(jnp.zeros(2), jnp.eye(2))
    return {"normal": affine, "flow": Chain([flows.nsf_coupling(key, 2), affine])}


def learn(bijection: AbstractBijection, y: Measurements, seed: int) -> dict[str, Any]:
    bound = partial(model, bijection)
    optimizer = numpyro.optim.Adam(lambda step: 0.01 * 0.5 ** (step / 600))
    svi = SVI(bound, AutoNormal(bound), optimizer, Trace_ELBO())
    return svi.run(jax.random.key(seed), NUM_STEPS, y, progress_bar=False).params


@jax.jit
def predictive(learned: AbstractBijection, noise: Array, y: Measurements, key: Array) -> Float[Array, " patients"]:
    """`log p(y)` of each patient, by draws of the prior."""
    effects = FlowDistribution(learned).sample(key, (NUM_DRAWS,))
    likelihood = dist.Normal(effects[:, :1] + effects[:, 1:] * TIMES, noise).to_event(1)
    log_prob = jax.lax.map(likelihood.log_prob, y[:, None])
    return jax.nn.logsumexp(log_prob, axis=1) - jnp.log(NUM_DRAWS)


def compared(seed: int) -> tuple[float, float, dict[str, Any]]:
    """Gain of the flow's predictions, in nats a new patient, its standard error, and the flow's parameters."""
    y, new = simulate(seed, NUM_PATIENTS), simulate(seed + 1_000, NUM_NEW)
    params, scores = {}, {}
    for name, bijection in priors(jax.random.key(seed)).items():
        params = learn(bijection, y, seed)
        learned = eqx.combine(params["prior$params"], bijection)
        scores[name] = np.asarray(predictive(learned, params["noise"], new, jax.random.key(seed)))
        print(f"seed {seed}, {name}: {scores[name].mean():.3f} nats a new patient, noise {params['noise']:.3f}")
    gain = scores["flow"] - scores["normal"]
    return float(gain.mean()), float(gain.std() / np.sqrt(NUM_NEW)), params


def effects_of(bijection: AbstractBijection, params: dict[str, Any], y: Measurements) -> FlowPosterior:
    """The posterior of a new patient's effects under the trained prior."""
    fixed = numpyro.handlers.substitute(partial(model, bijection), data=params)
    return FlowVI(fixed, progress_bar=False).run(jax.random.key(0), y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    params = {}
    for seed in range(options.seeds):
        gain, error, params = compared(seed)
        print(f"seed {seed}: the flow is better by {gain:.3f} nats a patient, standard error {error:.3f}")
    flow = priors(jax.random.key(options.seeds - 1))["flow"]
    effects_of(flow, params, simulate(7, 1)).print_summary()


if __name__ == "__main__":
    main()
