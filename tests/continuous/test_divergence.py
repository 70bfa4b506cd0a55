"""Estimates of the divergence: unbiased, of the variance that the formulas say, and a function of event and seed."""

import itertools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from numpyro_flows.bijections.noise import reseeded
from numpyro_flows.continuous import ContinuousFlow, Exact, Hutchinson, HutchPlusPlus, Training, in_training
from tests.continuous.common import CONDITION, DIM, KEY, X, linear_field, trained_field
from tests.continuous.common import within_standard_errors as within

SIZE, NUM_KEYS = 24, 10_000
KEYS = jax.random.split(jax.random.PRNGKey(1), NUM_KEYS)
ESTIMATES = {
    "rademacher": lambda: Hutchinson(KEY),
    "gaussian": lambda: Hutchinson(KEY, distribution="gaussian"),
    "six probes": lambda: Hutchinson(KEY, num_probes=6),
    "hutch++": lambda: HutchPlusPlus(KEY, num_probes=6),
}


@eqx.filter_jit
def estimates(divergence, field):
    """Divergences and squared norms at one point, of as many seeds as there are keys."""

    def one(key):
        found = reseeded(divergence, key)
        x = jnp.ones(field.dim)
        velocity = found(field, jnp.zeros(()), x, None, found.probes(x))
        return velocity.divergence, velocity.squared_norm

    return jax.vmap(one)(KEYS)


def symmetric_matrix():
    matrix = np.random.default_rng(0).normal(size=(SIZE, SIZE))
    return (matrix + matrix.T) / 2


def matrix_of_rank(rank: int):
    rng = np.random.default_rng(0)
    return rng.normal(size=(SIZE, rank)) @ rng.normal(size=(rank, SIZE))


over_estimates = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("rademacher", "hutch++"))) for n in ESTIMATES]
)


@over_estimates
def test_they_are_unbiased(name, x64):
    matrix = np.random.default_rng(0).normal(size=(SIZE, SIZE))
    divergence, squared_norm = estimates(ESTIMATES[name](), linear_field(matrix))
    assert within(divergence, np.trace(matrix))
    assert within(squared_norm, (matrix**2).sum())


MATRICES = {"symmetric": symmetric_matrix, "any": lambda: matrix_of_rank(SIZE)}
QUICK = (("rademacher", "symmetric", 1), ("gaussian", "any", 6))


@pytest.mark.parametrize(
    ("distribution", "kind", "num_probes"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK))
        for case in itertools.product(("rademacher", "gaussian"), MATRICES, (1, 6))
    ],
)
def test_their_variance_is_that_of_the_formulas(distribution, kind, num_probes, x64):
    matrix = MATRICES[kind]()
    a = (matrix + matrix.T) / 2
    diagonal = (np.diagonal(a) ** 2).sum() if distribution == "rademacher" else 0.0
    expected = 2 * ((a**2).sum() - diagonal) / num_probes
    hutchinson = Hutchinson(KEY, num_probes=num_probes, distribution=distribution)
    divergence, _ = estimates(hutchinson, linear_field(matrix))
    assert within((np.asarray(divergence) - np.trace(matrix)) ** 2, expected)


def test_of_a_diagonal_jacobian_rademacher_probes_are_exact(x64):
    divergence, _ = estimates(Hutchinson(KEY), linear_field(np.diag(np.arange(float(SIZE)))))
    np.testing.assert_allclose(divergence, SIZE * (SIZE - 1) / 2, rtol=1e-13)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_hutch_plus_plus_is_exact_where_few_directions_carry_the_jacobian(rank, x64):
    matrix = matrix_of_rank(rank)
    divergence, squared_norm = estimates(HutchPlusPlus(KEY, num_probes=6), linear_field(matrix))
    size = 1 + (matrix**2).sum()
    np.testing.assert_allclose(divergence, np.trace(matrix), atol=1e-11 * size)
    assert within(squared_norm, (matrix**2).sum()) or np.allclose(squared_norm, (matrix**2).sum(), rtol=1e-11)


def test_hutch_plus_plus_varies_less_where_few_directions_carry_most(x64):
    """With as many products of the Jacobian, of a matrix of rank 2 and a little noise."""
    matrix = matrix_of_rank(2) + 0.02 * symmetric_matrix()
    pair = HutchPlusPlus(KEY, num_probes=6), Hutchinson(KEY, num_probes=6)
    small, large = (np.asarray(estimates(divergence, linear_field(matrix))[0]) for divergence in pair)
    assert within(small, np.trace(matrix))
    assert 10 * small.var() < large.var()


@over_estimates
def test_the_velocity_is_the_field(name, x64):
    make = ESTIMATES[name]
    divergence, field, t, x = make(), trained_field(), jnp.asarray(0.3), jnp.asarray(X)
    found, expected = eqx.filter_jit(lambda x: (divergence(field, t, x, None, divergence.probes(x)), field(t, x)))(x)
    np.testing.assert_allclose(found.value, expected, rtol=1e-14)


@pytest.mark.parametrize("name", ["mlp", "ot-flow"])
def test_the_exact_one_is_the_jacobian_s(name, x64):
    """By forward mode, or where the field has one by its closed form."""
    field, t, condition = trained_field(name, cond_dim=2), jnp.asarray(0.3), jnp.asarray(CONDITION)

    @eqx.filter_jit
    def compute(x):
        return Exact()(field, t, x, condition, None), jax.jacrev(lambda x: field(t, x, condition))(x)

    found, jacobian = compute(jnp.asarray(X))
    np.testing.assert_allclose(found.divergence, np.trace(jacobian), rtol=1e-13)
    np.testing.assert_allclose(found.squared_norm, (jacobian**2).sum(), rtol=1e-13)


@pytest.mark.parametrize("make", [Hutchinson, HutchPlusPlus])
@pytest.mark.parametrize(
    "key_style", [pytest.param(jax.random.PRNGKey, marks=pytest.mark.slow), jax.random.key], ids=["raw", "typed"]
)
def test_probes_belong_to_seed_and_event(make, key_style):
    # of so few signs two may agree by chance: among many events and seeds they do not
    events = jnp.asarray(X, "float32") + 0.01 * jnp.arange(64)[:, None]
    probes = eqx.filter_jit(lambda divergence, events: jax.vmap(divergence.probes)(events))
    of_events, again, of_other_seed = (
        np.asarray(probes(make(key_style(seed)), events)).reshape(64, -1) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(of_events, again)
    # fair coins: the mean of 64 or more is within 4 standard errors of 0
    assert np.abs(of_events.mean(0)).max() < 4 / np.sqrt(64)
    assert np.abs((of_events * of_other_seed).mean()) < 4 / np.sqrt(of_events.size)


def coarse_flow(field, divergence) -> ContinuousFlow:
    """Solved in two steps of Euler, so that thousands of seeds cost little, all of them by the same steps."""
    steps = {"solver": diffrax.Euler(), "stepsize_controller": diffrax.ConstantStepSize(), "num_steps": 2}
    return ContinuousFlow(field, divergence=divergence, **steps)


def by_hand(field, y):
    """`-log N(x; 0, I)`, but for a constant, less the log-determinant of the way back, in the same two steps."""
    log_det = 0.0
    for t in (1.0, 0.5):
        log_det = log_det - jnp.trace(jax.jacfwd(lambda y, t=t: field(t, y))(y)) / 2
        y = y - field(t, y) / 2
    return 0.5 * (y**2).sum() - log_det


def value_and_slopes(loss, field, y):
    """The loss, and its slopes along a direction of the parameters and one of the event."""
    params, static = eqx.partition(field, eqx.is_inexact_array)
    value, (of_params, of_y) = jax.value_and_grad(lambda p, y: loss(eqx.combine(p, static), y), argnums=(0, 1))(
        params, y
    )
    flat = ravel_pytree(of_params)[0]
    return value, flat @ jnp.cos(jnp.arange(flat.size, dtype=flat.dtype)), of_y @ jnp.array([1.0, -2.0, 0.5], y.dtype)


@pytest.fixture(scope="module")
def exact():
    return eqx.filter_jit(lambda field, y: value_and_slopes(by_hand, field, y))(trained_field(), np.float32(X))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rademacher", "hutch++"])
def test_log_densities_and_their_gradients_are_unbiased(name, exact):
    divergence, y = ESTIMATES[name](), jnp.asarray(X, "float32")

    def one(field, key):
        def loss(field, y):
            x, log_det = coarse_flow(field, reseeded(divergence, key)).inverse_and_log_det(y)
            return 0.5 * (x**2).sum() - log_det

        return value_and_slopes(loss, field, y)

    found = eqx.filter_jit(jax.vmap(one, in_axes=(None, 0)))(trained_field(), KEYS)
    for values, expected in zip(found, exact):
        assert np.std(values) > 1e-3
        assert within(values, float(expected))


def test_training_draws_probes_anew_for_each_key():
    matrix = np.float32(np.random.default_rng(0).normal(size=(DIM, DIM)))
    training = Training(num_steps=2, solver=diffrax.Euler())
    flow = ContinuousFlow(linear_field(matrix), divergence=Hutchinson(KEY), training=training)
    y = jnp.asarray(X, "float32")
    log_det = eqx.filter_jit(jax.vmap(lambda key: in_training(flow, key).inverse_and_log_det(y)[1]))
    values, again = (np.asarray(log_det(KEYS[:32])) for _ in range(2))
    np.testing.assert_array_equal(values, again)
    # 2^3 probes make four different values, as a probe and its negative are alike
    assert len(np.unique(values)) == 4


@pytest.mark.slow
def test_probes_are_fixed_along_a_trajectory(x64):
    """So the estimate of a constant divergence is constant, and the log-determinant rises evenly."""
    matrix = np.random.default_rng(0).normal(size=(DIM, DIM))
    path = eqx.filter_jit(ContinuousFlow(linear_field(matrix), divergence=Hutchinson(KEY)).trajectory)(X)
    np.testing.assert_allclose(path.divergence, path.divergence[0], rtol=1e-12)
    np.testing.assert_allclose(path.log_det, path.times * path.divergence[0], rtol=1e-12, atol=1e-12)
    assert abs(path.divergence[0] - np.trace(matrix)) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hutchinson(KEY, num_probes=0), "num_probes expected at least 1, got 0"),
        (lambda: Hutchinson(KEY, distribution="uniform"), "distribution expected one of .*, got 'uniform'"),  # pyright: ignore[reportArgumentType]
        (lambda: HutchPlusPlus(KEY, num_probes=4), "num_probes expected a positive multiple of 3, got 4"),
        (lambda: HutchPlusPlus(KEY, num_probes=-3), "num_probes expected at least 1, got -3"),
        (lambda: HutchPlusPlus(KEY, num_probes=12).probes(jnp.ones(3)), r"at most 3 \* 3 .*, got 12"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
