from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from numpyro_flows import AutoFlow, PathELBO, flows
from numpyro_flows.bijections import Affine, Chain
from numpyro_flows.inference.losses import path_loss
from numpyro_flows.modeling.scoring import standard_normal_log_prob
from tests.bijections.common import made


def model():
    numpyro.sample("x", dist.Gamma(3.0, 1.0))
    numpyro.sample("z", dist.Normal(jnp.array([1.0, -2.0]), jnp.array([0.5, 2.0])).to_event(1))


def losses_and_gradients(guide, *elbos):
    @jax.jit
    def evaluate(key):
        svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
        params = svi.get_params(svi.init(key))
        return [jax.value_and_grad(lambda p, elbo=elbo: elbo.loss(key, p, model, guide))(params) for elbo in elbos]

    return evaluate(jax.random.key(1))


def test_other_guides_are_refused():
    """Those without one continuous latent vector, for which the value would be wrong."""
    with pytest.raises(TypeError, match="AutoContinuous guide, got AutoNormal"):
        losses_and_gradients(AutoNormal(model), PathELBO(4))


SMALL = partial(flows.realnvp, num_layers=2, hidden=(8,))


def affine(key, dim: int) -> Affine:
    return Affine(jnp.zeros(dim), jnp.ones(dim))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(AutoMultivariateNormal, marks=pytest.mark.slow),
        pytest.param(partial(AutoFlow, flow=SMALL), marks=pytest.mark.slow),
        partial(AutoFlow, flow=affine),
        AutoDiagonalNormal,  # whose posterior has a batch shape in place of an event shape
    ],
    ids=["numpyro", "realnvp", "affine", "diagonal"],
)
def test_value_and_expected_gradient_are_those_of_the_elbo(make):
    n = 20_000
    (path_value, path_gradient), (value, gradient) = losses_and_gradients(make(model), PathELBO(n), Trace_ELBO(n))
    np.testing.assert_allclose(path_value, value, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(path_gradient), jax.tree.leaves(gradient)):
        np.testing.assert_allclose(a, b, atol=0.1 + 0.02 * np.abs(b).max())  # means of n terms of sd about 5


def test_gradient_vanishes_draw_by_draw_at_the_posterior():
    loc, scale = jnp.array([1.0, -2.0]), jnp.array([0.5, 2.0])
    bijection = Chain([Affine(loc, scale)])
    params, static = eqx.partition(bijection, eqx.is_inexact_array)

    def loss(params, forward, offset):
        log_density = lambda x: dist.Normal(loc + offset, scale).log_prob(x).sum()  # noqa: E731
        return path_loss(
            eqx.combine(params, static), log_density, jax.random.normal(jax.random.key(0), (8, 2)), forward
        )

    gradient = jax.jit(jax.grad(loss))
    for forward in (0.0, 1.0):
        for leaf in jax.tree.leaves(gradient(params, forward, 0.0)):
            np.testing.assert_allclose(leaf, 0.0, atol=1e-5)
        assert any(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(gradient(params, forward, 1.0)))


def test_gradient_is_that_of_the_divergence(x64):
    """For Gaussians q = N(m, s^2), p = N(0, 1) both divergences have closed forms."""
    m, s = 0.3, 1.2
    n = 200_000

    @jax.jit
    @jax.grad
    def estimate(params, forward):
        bijection = eqx.tree_at(lambda b: (b.loc, b.log_scale), Affine(jnp.zeros(1)), params)
        log_density = lambda x: dist.Normal(0.0, 1.0).log_prob(x).sum()  # noqa: E731
        return path_loss(bijection, log_density, jax.random.normal(jax.random.key(0), (n, 1)), forward)

    def reverse_kl(m, log_s):
        return -log_s + 0.5 * (jnp.exp(2 * log_s) + m**2)

    def forward_kl(m, log_s):
        return log_s + 0.5 * (1 + m**2) * jnp.exp(-2 * log_s)

    params = np.array([m]), np.array([np.log(s)])
    for forward, divergence in ((0.0, reverse_kl), (1.0, forward_kl)):
        expected = jax.jit(jax.grad(divergence, argnums=(0, 1)))(m, np.log(s))
        # terms of sd below 2: a standard error of 0.0045
        np.testing.assert_allclose([g[0] for g in estimate(params, forward)], expected, atol=0.02)


def test_path_loss_agrees_with_path_elbo(x64):
    """One estimator in two forms: with an inverse pass and without."""
    bijection = made(lambda: SMALL(jax.random.key(0), 3), scale=0.1)
    base = jnp.asarray(np.random.default_rng(2).normal(size=(16, 3)))
    params, static = eqx.partition(bijection, eqx.is_inexact_array)
    log_density = lambda x: -jnp.sum(jnp.cosh(x))  # noqa: E731

    def with_inverse(params):
        x, _ = jax.vmap(eqx.combine(params, static).transform_and_log_det)(base)
        held = eqx.combine(jax.lax.stop_gradient(params), static)
        u, log_det = jax.vmap(held.inverse_and_log_det)(x)
        return jnp.mean(standard_normal_log_prob(u) + log_det - jax.vmap(log_density)(x))

    def without(params):
        return path_loss(eqx.combine(params, static), log_density, base)

    got, expected = jax.jit(lambda p: (jax.value_and_grad(without)(p), jax.value_and_grad(with_inverse)(p)))(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_draws_where_the_density_is_not_finite_count_as_none(x64):
    """The loss of a batch with NaN, infinite and zero densities is that of the others alone, gradient and all."""
    bijection = Affine(jnp.array([0.3]), 1.4)
    params, static = eqx.partition(bijection, eqx.is_inexact_array)
    base = np.array([[0.1], [-0.7], [5.0], [0.4], [-6.0]])

    def broken(x):
        outside = jnp.where(x[0] > 0, jnp.nan, -jnp.inf)
        return jnp.where(jnp.abs(x[0]) > 3, outside, -0.5 * jnp.sum(x**2))

    @jax.jit
    @jax.value_and_grad
    def loss(params, base):
        return path_loss(eqx.combine(params, static), broken, base, 0.5)

    got, want = loss(params, base), loss(params, base[[0, 1, 3]])
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(g, w, rtol=1e-12)
    assert np.isnan(loss(params, base[[2, 4, 4]])[0])


def test_errors():
    with pytest.raises(ValueError, match="num_particles expected at least 1, got 0"):
        PathELBO(0)
