"""Flow matching: paths, couplings, the loss, and the densities that `fit_density` makes by it."""

from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import multivariate_normal

from benchmarks.continuous import coupling
from benchmarks.flows.zoo import standardised
from numpyro_flows import FlowDistribution, fit_density, flows
from numpyro_flows.bijections import Chain
from numpyro_flows.continuous import (
    ConditionalOT,
    ContinuousFlow,
    Energies,
    FlowMatching,
    Hutchinson,
    LinearField,
    MLPField,
    RectifiedFlow,
    Training,
    VariancePreserving,
)
from numpyro_flows.continuous.matching import _nearest, _resampled
from numpyro_flows.density import fitting
from numpyro_flows.density.losses import Rows, flow_matching
from numpyro_flows.training.devices import ONE_DEVICE
from tests.continuous.common import COARSE, linear_field, within_standard_errors

PATHS = {"optimal transport": ConditionalOT(), "rectified": RectifiedFlow(), "diffusion": VariancePreserving()}
TRAIN, TEST = (np.asarray(points, np.float32)[:num] for points, num in zip(standardised("moons"), (500, 1000)))
FEW = 16  # solver steps
fit = partial(fit_density, jax.random.key(0), progress_bar=False)


@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_the_derivative_of_the_path(name, x64):
    path, step = PATHS[name], 1e-6
    x0, x1 = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.5])
    for t in (0.1, 0.5, 0.9):
        _, velocity = path(jnp.asarray(t), x0, x1)
        ahead, behind = (path(jnp.asarray(t + h), x0, x1)[0] for h in (step, -step))
        np.testing.assert_allclose(velocity, (ahead - behind) / (2 * step), rtol=1e-6)


def test_where_paths_begin_and_end(x64):
    x0, x1 = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.5])
    ends = {name: [np.asarray(path(jnp.asarray(t), x0, x1)[0]) for t in (0.0, 1.0)] for name, path in PATHS.items()}
    np.testing.assert_allclose(ends["rectified"], [x0, x1])
    np.testing.assert_allclose(ends["optimal transport"], [x0, x1 + 0.03 * x0])
    a, b = PATHS["diffusion"].weights(jnp.linspace(0.0, 1.0, 11))
    np.testing.assert_allclose(a**2 + b**2, 1.0, rtol=1e-12)  # the variance is kept
    assert a[0] < 0.01  # the data are forgotten
    assert b[-1] < 0.02  # and the noise has gone


@pytest.mark.parametrize(
    "name", ["optimal transport", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rectified", "diffusion"))]
)
def test_the_loss_is_least_at_the_field_that_carries_the_base_to_the_data(name):
    """For data `N(m, s^2)` it is `v = (a a' s^2 + b b') / (a^2 s^2 + b^2) (x - a m) + a' m`; `m` is the condition."""
    path, sd = PATHS[name], 0.5

    class Gaussian(LinearField):
        def __call__(self, t, x, condition: Any = None):
            (a, b), (a_slope, b_slope) = jax.jvp(path.weights, (t,), (jnp.ones_like(t),))
            slope = (a * a_slope * sd**2 + b * b_slope) / (a**2 * sd**2 + b**2)
            return slope * (x - a * condition) + a_slope * condition + self.weight @ (x - condition) + self.bias

    objective, num, batch = flow_matching(FlowMatching(path)), 2000, 256

    def gradient(key):
        mean_key, data_key, key = jax.random.split(key, 3)
        mean = jax.random.normal(mean_key, (batch, 1))
        x1 = mean + sd * jax.random.normal(data_key, (batch, 1))
        loss = lambda f: objective(ContinuousFlow(f), None, key, Rows(x1, mean, jnp.ones(batch)), ONE_DEVICE)  # noqa: E731
        slope = eqx.filter_grad(loss)(Gaussian(1))  # pyright: ignore[reportCallIssue]  # LinearField has the constructor
        return slope.weight[0, 0], slope.bias[0]

    for slopes in eqx.filter_jit(lambda keys: jax.vmap(gradient)(keys))(jax.random.split(jax.random.key(0), num)):
        assert within_standard_errors(slopes, 0.0)
        assert np.std(slopes) > 0


@eqx.filter_jit
def loss_of(matching, flow, data):
    return matching(flow, jax.random.key(0), data, None, jnp.ones(len(data)))


def test_interval_scales_time():
    """A field on another interval has the same loss where it is slower by as much as the interval is longer."""
    weight = np.array([[0.3, -0.2], [0.1, 0.4]], np.float32)
    one = loss_of(FlowMatching(), ContinuousFlow(linear_field(weight)), TRAIN)
    other = loss_of(FlowMatching(), ContinuousFlow(linear_field(weight / 3), interval=(2.0, 5.0)), TRAIN)
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_minibatch_coupling_is_the_best_assignment():
    rng = np.random.default_rng(0)
    x0, x1 = rng.normal(size=(2, 32, 2)).astype(np.float32)
    paired = np.asarray(jax.jit(_nearest)(x0, x1))
    rows, columns = linear_sum_assignment(((x1[:, None] - x0[None]) ** 2).sum(-1))
    np.testing.assert_array_equal(paired, x0[columns[np.argsort(rows)]])
    assert ((paired - x1) ** 2).sum() < 0.5 * ((x0 - x1) ** 2).sum()


def test_coupled_paths_are_short():
    """Where the data are the base, of length 0 but for chance: the loss of a field at rest is their mean square."""
    data, at_rest = np.random.default_rng(0).normal(size=(256, 1)), ContinuousFlow(LinearField(1))
    couplings = "independent", "minibatch_ot"
    free, coupled = (loss_of(FlowMatching(RectifiedFlow(), c), at_rest, np.float32(data)) for c in couplings)
    # the mean of 256 squares of N(0, 2): 2, of variance 8 / 256
    assert abs(free - 2) < 4 * np.sqrt(8 / 256)
    assert coupled < 0.05 * free


def test_pairs_of_a_discrete_condition_are_the_best_within_each_value():
    rng = np.random.default_rng(0)
    x0, x1 = rng.normal(size=(2, 32, 2)).astype(np.float32)
    condition = np.repeat([[-1.0], [1.0]], 16, axis=0).astype(np.float32)
    paired = jax.jit(_nearest)(x0, x1, condition)
    for half in (slice(16), slice(16, 32)):
        np.testing.assert_array_equal(paired[half], jax.jit(_nearest)(x0[half], x1[half]))


def test_base_draws_of_pairs_do_not_depend_on_the_condition():
    """Of `x = 2 c + 0.3 e` they follow `e`, and the mean given `c` is `c / 100`; pairs by `x` alone have 0.98 `c`."""
    rng, pair = np.random.default_rng(0), jax.jit(_nearest)
    found = []
    for _ in range(40):
        c, e, x0 = rng.normal(size=(3, 256, 1)).astype(np.float32)
        x = (2 * c + 0.3 * e) / np.float32(np.sqrt(4.09))
        paired = np.asarray(pair(x0, x, c))
        found.append([np.mean(paired * c), np.mean(paired * e)])
    with_condition, with_noise = np.array(found).T
    assert within_standard_errors(with_condition, 0.01)
    assert with_noise.mean() > 0.5


def test_resampled_rows_are_as_many_as_their_weights_say():
    weights = np.array([0.0, 0.3, 5.0, 1.0, 0.0, 1.7, 8.0, 0.0], np.float32)
    sample = jax.jit(jax.vmap(_resampled, (0, None)))
    keys = jax.random.split(jax.random.key(0), 1000)
    rows = np.asarray(sample(keys, weights))
    counts, expected = (rows[..., None] == np.arange(8)).sum(1), 8 * weights / weights.sum()
    assert (np.abs(counts - expected) < 1).all()
    for row, mean in enumerate(expected):
        assert within_standard_errors(counts[:, row], mean) or np.ptp(counts[:, row]) == 0
    assert within_standard_errors(rows[:, 0] == 6, 0.5)  # in random order: the first is any of them
    np.testing.assert_array_equal(np.sort(sample(keys[:1], np.ones(8, np.float32)))[0], np.arange(8))
    assert (sample(keys[:1], np.zeros(8, np.float32)) < 8).all()


def test_of_weighted_rows_coupled_paths_have_the_weighted_mean_and_the_width_of_the_path():
    """Over all batches, though each is resampled: with weights of mean 1 among all rows, not within a batch."""
    rng, path, batch = np.random.default_rng(0), ConditionalOT(0.3), 8
    x = rng.normal(size=(40, 1)).astype(np.float32)
    weights = np.exp(2 * x[:, 0])
    weights /= weights.mean()

    def ends(key):
        batch_key, key = jax.random.split(key)
        rows = jax.random.choice(batch_key, 40, (batch,), replace=False)
        x1 = jnp.asarray(x)[rows]
        x0, x1, _, w = FlowMatching(path, "minibatch_ot")._paired(key, x1, x1, None, jnp.asarray(weights)[rows])
        end, _ = jax.vmap(path)(jnp.ones(batch), x0, x1)
        return jnp.mean(w * end[:, 0]), jnp.mean(w * end[:, 0] ** 2)

    mean, square = jax.jit(jax.vmap(ends))(jax.random.split(jax.random.key(0), 4000))
    assert within_standard_errors(mean, float(np.mean(weights * x[:, 0])))
    # base draws are the rows here: paths to `x1 + 0.3 x0` would end up to 1.3 times as far out
    assert within_standard_errors(square, float(np.mean(weights * x[:, 0] ** 2)) + 0.3**2)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["line", "weighted", "both"])
def test_optimal_transport_finds_known_densities(task):
    """Conditional, weighted and both, as `benchmarks.continuous.coupling` measures them."""
    found = coupling.measure(task, "minibatch_ot", seed=0)
    assert float(found["above_truth"]) < 0.03
    if found["share"]:
        assert float(found["share"]) == pytest.approx(10 / 11, abs=0.03)


@pytest.fixture(scope="module")
def matched():
    """Two moons by a flow that was matched, with few steps of Euler where it is trained by likelihood."""
    training = Training(num_steps=FEW, solver=diffrax.Euler(), penalties=Energies())
    flow = partial(flows.ffjord, field=partial(MLPField, hidden=(32, 32)), training=training)
    return fit(TRAIN, flow=flow, objective="flow_matching", num_steps=1500)


@pytest.mark.slow
def test_two_moons(matched):
    """Better than a Gaussian, a density that integrates to 1, and a report of how it was solved."""
    side = np.linspace(-3.0, 3.0, 61, dtype="float32")
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    log_prob = np.asarray(jax.jit(matched.log_prob)(np.concatenate([TEST, grid])), np.float64)
    gain = log_prob[: len(TEST)] - multivariate_normal(TEST.mean(0), np.cov(TEST.T).tolist()).logpdf(TEST)
    assert gain.mean() > 10 * gain.std() / np.sqrt(gain.size)
    mass = np.exp(log_prob[len(TEST) :]).sum() * (side[1] - side[0]) ** 2
    assert abs(mass - 1) < 0.02  # by the grid, which is coarse for the crescents
    assert np.isnan(matched.fit.solver.gap)  # training solved nothing
    assert len(matched.fit.losses) == 1500


@pytest.mark.slow
def test_likelihood_goes_on_with_the_same_rows_held_out_and_more_solver_steps(matched):
    flow = fit(TRAIN, flow=matched, num_steps=60, learning_rate=1e-5, patience=100)
    assert flow.fit.validation[0] == pytest.approx(matched.fit.held_out.nll, abs=1e-3)
    assert flow.fit.held_out.nll <= matched.fit.held_out.nll + 1e-3
    assert flow.fit.solver.num_steps > FEW
    assert abs(flow.fit.solver.gap) < 0.02


@pytest.mark.slow
def test_a_solver_that_stays_too_coarse_is_told():
    """For a path that turns too fast for the few steps that a training of one step raises its solver to."""
    training = Training(num_steps=1, solver=diffrax.Euler(), penalties=Energies())
    options = COARSE | {"solver": diffrax.Heun(), "training": training}
    turning = FlowDistribution(ContinuousFlow(linear_field([[0.0, -2.0], [2.0, 0.0]]), **options))
    with pytest.warns(UserWarning, match=r"the solver of training, of \d steps, is too coarse"):
        flow = fit(TRAIN, flow=turning, num_steps=1, learning_rate=1e-8)
    assert abs(flow.fit.solver.gap) > 0.02
    assert flow.fit.solver.num_steps > 1
    assert flow.fit.solver.num_evaluations == 16  # of the flow's own eight steps of Heun


def test_of_several_restarts_each_keeps_its_last_parameters_unless_they_are_worse():
    """Beyond chance: the first is not, the second is."""
    luck = np.random.default_rng(0).normal(size=100)
    scores = np.stack([luck - luck.mean() + 0.01, np.full(100, 0.01)])
    params = np.arange(6.0).reshape(2, 3)
    best = fitting._Best(params, np.zeros(2), scores, np.zeros(2))
    last = fitting._Best(-params, np.full(2, 0.01), np.zeros((2, 100)), np.ones(2))
    kept = fitting._last_unless_worse(best, last)
    np.testing.assert_array_equal(kept.params, [-params[0], params[1]])
    np.testing.assert_array_equal(kept.gap, [1.0, 0.0])


@pytest.mark.slow
def test_an_estimated_density_says_so():

    def flow(key, dim: int):
        return ContinuousFlow(LinearField(dim), divergence=Hutchinson(key), **COARSE)

    with pytest.warns(UserWarning, match="random estimates: Hutchinson's estimator with 1 rademacher probes"):
        fit_density(jax.random.PRNGKey(0), TRAIN, flow=flow, objective="flow_matching", num_steps=1, progress_bar=False)


def test_errors():
    with pytest.raises(ValueError, match="objective expected 'maximum_likelihood', 'flow_matching' or a FlowMatching"):
        fit(TRAIN, objective="matching")
    with pytest.raises(ValueError, match=r"flow_matching expected a recipe of a ContinuousFlow, .* got one of a Scan"):
        fit(TRAIN, flow=flows.realnvp, objective="flow_matching")
    fitted = FlowDistribution(Chain([flows.ffjord(jax.random.key(0), 2)]))
    with pytest.raises(ValueError, match="continue the training of other flows by maximum_likelihood"):
        fit(TRAIN, flow=fitted, objective="flow_matching")
    with pytest.raises(ValueError, match=r"coupling expected one of \['independent', 'minibatch_ot'\], got 'ot'"):
        FlowMatching(coupling="ot")  # pyright: ignore
    with pytest.raises(ValueError, match=r"sigma_min expected a number in \[0, 1\), got 1"):
        ConditionalOT(1.0)
    with pytest.raises(ValueError, match=r"expected 0 < beta_min <= beta_max, got 2\.0 and 1\.0"):
        VariancePreserving(2.0, 1.0)
