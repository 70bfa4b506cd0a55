"""Densities of angles, counts and categories beside real columns."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from numpyro.distributions import constraints

from benchmarks.density.mixed import CASES, row
from benchmarks.results import read
from numpyro_flows import FlowDistribution, MixedDistribution, anomaly_scores, fit_density, flows
from numpyro_flows.bijections import Affine
from numpyro_flows.modeling.discrete import Categories, Counts, largest_whole

SMALL = partial(flows.realnvp, num_layers=2, hidden=(8,))
fit: Any = partial(fit_density, num_steps=20, progress_bar=False)
RNG = np.random.default_rng(0)
TABLE: Any = pd.DataFrame(
    {
        "income": np.exp(RNG.normal(size=300)),
        "region": RNG.integers(0, 3, 300),
        "hour": RNG.vonmises(3.0, 2.0, 300) + 2 * np.pi,
        "visits": RNG.poisson(3.0, 300),
        "height": RNG.normal(size=300),
        "member": RNG.uniform(size=300) < 0.3,
    }
)
SUPPORT = {
    "income": constraints.positive,
    "region": constraints.integer_interval(0, 2),
    "hour": constraints.circular,
    "visits": constraints.nonnegative_integer,
    "member": constraints.boolean,
}
AGE = RNG.normal(50.0, 10.0, size=(300, 1))


@pytest.mark.parametrize(("low", "high", "num"), [(0, None, 3000), (1, None, 3000), (-5, 60, 66), (0, 1000, 1001)])
def test_counts_have_probabilities(low, high, num, x64):
    """Whatever the network gives, they sum to 1 over the support; draws have these frequencies."""
    column = Counts(jax.random.key(0), low, high, 1, 2.0, 0.8)
    noise = jax.random.key(1)
    column = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(noise, leaf.shape), column)  # of its network
    seen, k = jnp.array([0.7]), low + jnp.arange(num, dtype=float)
    probability = np.exp(jax.jit(jax.vmap(lambda k: column.log_prob(k, seen)))(k))
    assert probability.sum() == pytest.approx(1.0, abs=1e-9 if high is not None else 2e-3)
    draws = np.asarray(
        jax.jit(jax.vmap(lambda key: column.sample(key, seen)))(jax.random.split(jax.random.key(2), 20_000))
    )
    assert column.inside(draws).all()
    likely = probability > 0.01
    frequency = np.bincount((draws - low).astype(int), minlength=num)[:num] / 20_000
    np.testing.assert_allclose(frequency[likely], probability[likely], atol=4 * np.sqrt(0.25 / 20_000))


def test_counts_far_out_have_finite_gradients():
    column = Counts(jax.random.key(0), 0, None, 0, 1.0, 0.01)
    for k in (0.0, 5.0, float(largest_whole() - 1)):
        value, gradient = jax.value_and_grad(lambda c, k=k: c.log_prob(jnp.asarray(k), jnp.zeros(0)), allow_int=True)(
            column
        )
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_categories_start_at_the_shares_of_the_data():
    shares = np.array([0.2, 0.5, 0.3])
    column = Categories(jax.random.key(0), 4, 6, 2, shares)
    log_prob = [column.log_prob(jnp.asarray(k), jnp.ones(2)) for k in (4.0, 5.0, 6.0)]
    np.testing.assert_allclose(np.exp(log_prob), shares, rtol=1e-5)
    np.testing.assert_array_equal(column.encode(jnp.array([4.0, 6.0])), [[1, 0, 0], [0, 0, 1]])


@pytest.fixture(scope="module")
def mixed() -> Any:
    return fit(jax.random.key(0), TABLE, support=SUPPORT, condition=AGE, flow=SMALL, test=0.1)


@pytest.mark.slow
def test_a_table_of_all_kinds(mixed):
    given = mixed.given(jnp.array([50.0]))
    draws = jax.jit(lambda key: given.sample(key, (2000,)))(jax.random.key(1))
    assert set(draws) == set(TABLE.columns)
    for name, inside in SUPPORT.items():
        assert inside(draws[name]).all(), name
        assert (draws[name].dtype == jnp.int32) == (name in ("region", "visits", "member"))
    log_prob = jax.jit(given.log_prob)(draws)
    assert np.isfinite(log_prob).all()
    np.testing.assert_allclose(given.log_prob(pd.DataFrame(draws).iloc[:, ::-1]), log_prob, rtol=1e-4, atol=1e-4)
    assert given.support(given.columns.pack(draws)).all()
    turned = given.log_prob(draws | {"hour": draws["hour"] + 2 * jnp.pi})
    np.testing.assert_allclose(turned, log_prob, atol=1e-2)
    for name, bad in {"region": 3, "visits": -1, "member": 2}.items():
        outside = draws | {name: jnp.full_like(draws[name], bad)}
        assert (given.log_prob(outside) == -jnp.inf).all(), name
    assert (jax.jit(given.log_prob)(draws | {"income": -draws["income"]}) == -jnp.inf).all()
    assert (given.log_prob(draws | {"visits": draws["visits"] + 0.5}) == -jnp.inf).all()


@pytest.mark.slow
def test_what_a_mixed_fit_reports(mixed):
    parts = mixed.fit.parts
    assert list(parts) == ["discrete", "angles", "linear"]
    for which in ("held_out", "test"):
        whole = getattr(mixed.fit, which)
        assert whole.nll == pytest.approx(sum(getattr(part, which).nll for part in parts.values()), abs=1e-3)
    every = mixed.given(AGE).log_prob(TABLE)
    assert -every.mean() == pytest.approx(mixed.fit.held_out.nll, abs=5 * mixed.fit.held_out.se)
    assert mixed.fit.why.startswith("discrete: all 20 steps taken; angles: all")


@pytest.mark.slow
def test_a_mixed_distribution_comes_back_from_a_file(mixed, tmp_path):
    mixed.save(tmp_path / "mixed")
    again = MixedDistribution.load(tmp_path / "mixed")
    np.testing.assert_array_equal(again.given(AGE).log_prob(TABLE), mixed.given(AGE).log_prob(TABLE))
    assert again.fit == mixed.fit
    assert jax.tree.structure(again.given(AGE[0])) == jax.tree.structure(mixed.given(AGE[0]))
    with pytest.raises(ValueError, match="expected a file with a FlowDistribution, got one with a MixedDistribution"):
        FlowDistribution.load(tmp_path / "mixed")


@pytest.mark.slow
def test_batches_and_conditions(mixed):
    batch = mixed.given(jnp.array([[40.0], [60.0]]))
    assert batch.batch_shape == (2,)
    draws = batch.sample(jax.random.key(0), (3,))
    assert draws["hour"].shape == (3, 2)
    log_prob = batch.log_prob(draws)
    second = mixed.given(jnp.array([60.0])).log_prob({name: value[:, 1] for name, value in draws.items()})
    np.testing.assert_allclose(log_prob[:, 1], second, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"of shape \(\*batch, 1\), got none: call `.given"):
        mixed.sample(jax.random.key(0))
    with pytest.raises(ValueError, match=r"condition expected of shape \(\*batch, 1\), got an array of shape \(2,\)"):
        mixed.given(jnp.zeros(2))


def test_counts_alone():
    """Events are numbers; no flow is trained."""
    counts = RNG.poisson(2.0, 400)
    mixed = fit(jax.random.key(0), counts, support=constraints.nonnegative_integer)
    assert mixed.event_shape == ()
    probability = np.exp(jax.jit(mixed.log_prob)(np.arange(2000)))
    assert probability.sum() == pytest.approx(1.0, abs=1e-3)
    draws = mixed.sample(jax.random.key(1), (5,))
    assert draws.shape == (5,)
    scores = anomaly_scores(mixed, np.array([2, 40]), counts)
    assert scores.p_density[1] < 0.01 < scores.p_density[0]


@pytest.mark.slow
def test_angles_alone_by_a_recipe_of_their_own():
    angles = RNG.vonmises(1.0, 2.0, size=(300, 2, 2))
    recipe = partial(flows.nsf_coupling, circular=True, num_layers=1, num_bins=3)
    mixed = fit(jax.random.key(0), angles, support=constraints.circular, flow=recipe)
    assert mixed.angles.bijection.layers.bijections[0].univariate.num_bins == 3
    assert mixed.sample(jax.random.key(0), (3,)).shape == (3, 2, 2)
    with pytest.raises(ValueError, match="expected a recipe of angles"):
        fit(jax.random.key(0), angles, support=constraints.circular, flow=SMALL)


@pytest.mark.slow
def test_a_table_of_real_columns():
    table = TABLE[["income", "height"]]
    flow = fit(jax.random.key(0), table, support={"income": constraints.positive}, flow=SMALL)
    assert isinstance(flow, FlowDistribution)
    draws = flow.sample(jax.random.key(0), (3,))
    assert list(draws) == ["income", "height"]
    np.testing.assert_allclose(
        flow.log_prob(table[["height", "income"]]),
        flow.log_prob({k: v.to_numpy() for k, v in table.items()}),
        rtol=1e-5,
    )


DATA = np.stack([RNG.integers(0, 4, 50), RNG.normal(size=50)], axis=1).astype(float)
LEVELS = [constraints.integer_interval(0, 3), constraints.real]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            DATA + 0.5,
            {"support": LEVELS},
            "column 0 expected whole numbers, as its support is discrete, .* in 50 of 50",
        ),
        (DATA + 1, {"support": LEVELS}, "column 0 expected whole numbers from 0 to 3, got others in"),
        (DATA - 1, {"support": [constraints.nonnegative_integer, constraints.real]}, "at least 0, got others in"),
        (DATA * [2.0**24, 1], {"support": [constraints.nonnegative_integer, constraints.real]}, "below 16,777,216"),
        (DATA, {"support": LEVELS[:1]}, "a constraint for each column"),
        (DATA, {"support": {"a": constraints.boolean}}, "constraints for an array"),
        ({"a": DATA[:, 0]}, {"support": constraints.nonnegative_integer}, "expected a dict by site"),
        ({"a": DATA[:, 0]}, {"support": {"b": constraints.boolean}}, r"got some of \['b'\]"),
        ({"a": DATA[:, 0]}, {"support": {"a": constraints.boolean}}, "site 'a' expected whole numbers from 0 to 1"),
        (DATA[:0], {"support": LEVELS}, "expected rows and coordinates"),
        (DATA[:1], {"support": LEVELS}, "expected more rows than coordinates, and at least 3"),
        (DATA * np.nan, {"support": LEVELS}, "data expected finite values"),
        (DATA, {"support": constraints.multinomial(3)}, "support expected constraints.nonnegative_integer"),
        (
            DATA,
            {"support": LEVELS, "objective": "flow_matching"},
            "objective expected 'maximum_likelihood' for data with",
        ),
        (DATA, {"support": LEVELS, "dequantize": True}, "dequantize expected False"),
        (DATA, {"support": LEVELS, "flow": FlowDistribution(Affine(jnp.zeros(2)))}, "flow expected a recipe for data"),
        (
            RNG.normal(size=(50, 2)),
            {"flow": partial(flows.nsf_coupling, circular=True)},
            "Write support=constraints.circular",
        ),
        (pd.DataFrame(DATA, columns=["a", "a"]), {}, "columns of different names"),
    ],
)
def test_errors(data, options, message):
    with pytest.raises(ValueError, match=message):
        fit(jax.random.key(0), data, **options)


def test_training_of_angles_on_a_normal_base_does_not_go_on():
    circular = FlowDistribution(flows.nsf_coupling(jax.random.key(0), 2, circular=True, num_layers=1))
    with pytest.raises(ValueError, match="bijection of real numbers"):
        fit(jax.random.key(0), DATA, flow=circular)


def test_the_benchmark_s_densities_are_near_the_truth():
    for measured in read("density_mixed"):
        assert float(measured["excess"]) < 0.02 + 2 * float(measured["se"])
        assert float(measured["mass"]) == pytest.approx(1.0, abs=1e-3)
        assert measured["outside"] == "0"


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("case", CASES)
def test_densities_that_are_known(case):
    """By the benchmark's own command, another seed."""
    measured = row(case, 3)
    assert float(measured["excess"]) < 0.02 + 3 * float(measured["se"])
    assert float(measured["mass"]) == pytest.approx(1.0, abs=1e-3)
    assert measured["outside"] == 0


def test_a_row_far_away_is_left_out_of_every_part():
    rng = np.random.default_rng(0)
    k, y = rng.integers(0, 3, 200), rng.normal(size=200)
    y[17] = 1e6
    support = [constraints.integer_interval(0, 2), constraints.real]
    options = {"support": support, "flow": SMALL, "num_steps": 5, "test": 0.25, "progress_bar": False}
    with pytest.warns(UserWarning, match=r"row 17 \(column 0"):
        mixed = fit_density(jax.random.key(1), np.c_[k, y], **options)
    kept = np.arange(200) != 17
    without = fit_density(jax.random.key(1), np.c_[k, y][kept], **options)
    assert mixed.fit.held_out == without.fit.held_out
    assert mixed.fit.test == without.fit.test
    assert mixed.fit.held_out.nll < 10.0


def test_counts_that_single_precision_does_not_tell_apart():
    counts = 8_000_000 + np.random.default_rng(0).poisson(3, 500)
    with pytest.raises(ValueError, match="expected columns whose values float32 numbers can tell apart"):
        fit_density(jax.random.key(0), counts, support=constraints.nonnegative_integer, progress_bar=False)
