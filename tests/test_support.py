"""Densities where there are none: outside a support, on its boundary, on bases of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints

from numpyro_flows import FlowDistribution
from numpyro_flows.bijections import Affine
from numpyro_flows.modeling.sites import Sites, SitesTransform

INF, NAN = np.inf, np.nan
HALF = np.sqrt(0.5)
# a point inside, and events that are outside or on the boundary
SUPPORTS = {
    "real": (constraints.real_vector, [0.3, -2.0], [[INF, 0.0], [0.0, NAN], [-INF, NAN]]),
    "positive": (constraints.positive, [0.5, 3.0], [[0.0, 1.0], [-1.0, 1.0], [1.0, INF], [NAN, 1.0]]),
    "unit interval": (constraints.unit_interval, [0.2, 0.9], [[0.0, 0.5], [0.5, 1.0], [1.5, 0.5], [-0.5, 0.5]]),
    "interval": (constraints.interval(-2.0, 5.0), [-1.9, 4.0], [[-2.0, 0.0], [0.0, 5.0], [6.0, 0.0], [0.0, -3.0]]),
    "less than": (constraints.less_than(2.0), [1.9, -30.0], [[2.0, 0.0], [0.0, 3.0]]),
    "simplex": (
        constraints.simplex,
        [0.2, 0.3, 0.5],
        [[0.0, 0.5, 0.5], [0.0, 1.0, 0.0], [0.3, 0.3, 0.3], [-0.5, 0.5, 1.0], [0.4, 0.6, 0.0]],
    ),
    "ordered": (constraints.ordered_vector, [-1.0, 2.0], [[1.0, 1.0], [2.0, 1.0]]),
    "correlation": (
        constraints.corr_cholesky,
        [[1.0, 0.0], [0.6, 0.8]],
        [[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.3], [0.6, 0.8]], [[2.0, 0.0], [0.6, 0.8]], [[1.0, 0.0], [0.6, 0.9]]],
    ),
    "lower Cholesky": (
        constraints.lower_cholesky,
        [[2.0, 0.0], [-3.0, 0.5]],
        [[[2.0, 0.0], [1.0, 0.0]], [[2.0, 1.0], [1.0, 1.0]], [[-1.0, 0.0], [1.0, 1.0]]],
    ),
    "columns": (constraints.cat([constraints.real, constraints.positive], -1), [-1.0, 2.0], [[-1.0, 0.0], [0.0, -2.0]]),
}


def constrained(support, event) -> FlowDistribution:
    transform = biject_to(support)
    dim = transform.inverse_shape(np.shape(event))[-1]
    return FlowDistribution(Affine(jnp.full(dim, 0.1), 1.3), constrain=transform, validate_args=False)


# "less than" is a boundary of the interval
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "less than")) for name in SUPPORTS]
)
def test_outside_and_on_the_boundary(name):
    support, event, outside = SUPPORTS[name]
    flow = constrained(support, event)
    values = jnp.array([event, *outside])

    @jax.jit
    def evaluate(values):
        log_prob, pull = jax.vjp(flow.log_prob, values)
        return log_prob, *pull(jnp.ones_like(log_prob)), sum(flow.log_prob_parts(values))

    log_prob, gradient, of_parts = evaluate(values)
    assert np.isfinite(log_prob[0])
    assert (log_prob[1:] == -INF).all(), log_prob
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0]).sum() > 0
    np.testing.assert_allclose(of_parts, log_prob, rtol=1e-5)


def test_sites():
    sites = Sites({"p": (), "w": (3,), "x": (2,)}, {"p": constraints.unit_interval, "w": constraints.simplex})
    flow = FlowDistribution(Affine(jnp.zeros(5)), constrain=SitesTransform(sites), validate_args=False)
    good = {"p": 0.3, "w": jnp.array([0.2, 0.3, 0.5]), "x": jnp.ones(2)}
    log_prob = jax.jit(jax.value_and_grad(flow.log_prob))
    assert np.isfinite(log_prob(good)[0])
    for bad in (
        {"p": 0.0},
        {"p": 1.0},
        {"p": -0.1},
        {"w": jnp.ones(3)},
        {"w": jnp.eye(3)[0]},
        {"x": jnp.array([NAN, 0])},
    ):
        value, gradient = log_prob(good | bad)
        assert value == -INF, bad
        assert np.isfinite(gradient["x"]).all()


def test_draws_are_inside(x64):
    """Also in single precision, where NumPyro's own check of a simplex of many coordinates is too strict."""
    with jax.enable_x64(False):
        flow = FlowDistribution(Affine(jnp.zeros(299)), constrain=biject_to(constraints.simplex), validate_args=False)
        log_prob = jax.jit(lambda key: flow.log_prob(flow.sample(key, (20,))))(jax.random.key(0))
        assert np.isfinite(log_prob).all()


BASES = {
    "log-normal": dist.LogNormal(jnp.zeros(2), 0.5).to_event(1),
    "transformed": dist.TransformedDistribution(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        [dist.transforms.AffineTransform(0.1, 0.5), dist.transforms.ExpTransform()],
    ),
    "flow": FlowDistribution(Affine(jnp.ones(2), 3.0)),
    "flow on positive numbers": FlowDistribution(Affine(jnp.ones(2)), constrain=biject_to(constraints.positive)),
    "flow on a flow": FlowDistribution(Affine(jnp.ones(2), 3.0), FlowDistribution(Affine(jnp.ones(2), 0.5))),
    "uniform": dist.Uniform(jnp.zeros(2), 1.0).to_event(1),
    "gamma": dist.Gamma(jnp.full(2, 2.0)).to_event(1),
}


# all bases with a support, one of them without
@pytest.mark.parametrize(
    ("name", "constrain"),
    [
        *(pytest.param(name, biject_to(constraints.positive), id=f"{name}-positive") for name in BASES),
        *(
            pytest.param(name, None, id=f"{name}-real", marks=[pytest.mark.slow] * (name != "uniform"))
            for name in BASES
        ),
    ],
)
def test_bases(name, constrain):
    """`p(y) = p_base(u) |det du/dy|` by hand, for a base that NumPyro takes apart too."""
    base, loc, scale = BASES[name], jnp.array([0.5, -1.0]), 2.0
    flow = FlowDistribution(Affine(loc, scale), base, constrain=constrain)

    @jax.jit
    def evaluate(key):
        y, intermediates = flow.sample_with_intermediates(key, (50,))
        x = y if constrain is None else jnp.log(y)
        volume = 0.0 if constrain is None else x.sum(-1)
        expected = base.log_prob((x - loc) / scale) - 2 * np.log(scale) - volume
        return flow.log_prob(y), flow.log_prob(y, intermediates), expected

    log_prob, with_intermediates, expected = evaluate(jax.random.key(0))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(with_intermediates, expected, rtol=1e-4, atol=1e-4)
    assert flow.constrain is constrain or flow.constrain == constrain
    assert flow.bijection.loc.tolist() == loc.tolist()


@pytest.mark.parametrize("name", ["uniform", "gamma", "log-normal", "flow on positive numbers"])
def test_outside_the_base(name):
    flow = FlowDistribution(Affine(jnp.zeros(2), 2.0), BASES[name])
    values = jnp.array([[1.0, 0.5], [-1.0, 1.0], [0.5, -3.0]])
    log_prob, gradient = jax.jit(jax.vmap(jax.value_and_grad(flow.log_prob)))(values)
    assert np.isfinite(log_prob[0])
    assert (log_prob[1:] == -INF).all()
    assert np.isfinite(gradient).all()


def test_a_flow_of_nan_stays_so():
    flow = FlowDistribution(Affine(jnp.full(2, NAN)))
    assert np.isnan(jax.jit(flow.log_prob)(jnp.ones(2)))
