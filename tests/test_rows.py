"""Subsampled plates: all rows count, a block at a time."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from numpyro_flows import FlowPosterior, FlowTraining, FlowVI, GaussianStart, compare_with_nuts, verify_fit
from numpyro_flows.inference.density_cost import Cost
from numpyro_flows.inference.minibatch import Minibatch
from numpyro_flows.inference.rows import Rows
from numpyro_flows.inference.target import Target

ROWS = 1_030


def regression(x, y, block=None):
    weights = numpyro.sample("weights", dist.Normal(0, 2).expand([x.shape[1]]).to_event(1))
    sd = numpyro.sample("sd", dist.HalfNormal(2))
    with numpyro.plate("rows", x.shape[0], subsample_size=block):
        mean = numpyro.deterministic("mean", jnp.asarray(numpyro.subsample(x, event_dim=1)) @ jnp.asarray(weights))
        numpyro.sample("y", dist.Normal(mean, sd), obs=numpyro.subsample(y, event_dim=0))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 3))
    return x, x @ np.array([1.0, -0.5, 0.2]) + 0.7 * rng.normal(size=ROWS)


class Unread(np.memmap):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A file of which nothing may be read but `most` rows at a time."""

    most = 0

    def __getitem__(self, index: Any) -> Any:
        Unread.most = max(Unread.most, np.size(index))
        return np.asarray(super().__getitem__(index))

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the whole file was read")


@pytest.fixture
def files(data, tmp_path):
    arrays = []
    for name, array in zip("xy", data):
        np.memmap(tmp_path / name, array.dtype, "w+", shape=array.shape)[:] = array
        arrays.append(Unread(tmp_path / name, array.dtype, "r", shape=array.shape))
    Unread.most = 0
    return arrays


@pytest.mark.parametrize(
    "block", [pytest.param(100, marks=pytest.mark.slow), pytest.param(103, marks=pytest.mark.slow), ROWS - 1]
)
def test_density_is_that_of_all_rows(data, block, x64):
    args = [jnp.asarray(array) for array in data]
    whole = Target(regression, jax.random.key(0), (*args,))
    blocks = Target(regression, jax.random.key(0), (*args, block))
    assert whole.rows is None
    assert blocks.rows == Rows("rows", ROWS, block, frozenset({"mean", "y"}))
    points = jax.random.normal(jax.random.key(1), (5, 4))
    for of in (lambda target: target.log_density, lambda target: jax.grad(target.log_density)):
        np.testing.assert_allclose(jax.vmap(of(blocks))(points), jax.vmap(of(whole))(points), rtol=1e-11)


def test_cost_is_that_of_a_block_at_a_time(data):
    """And the rows themselves, which all points share, do not count."""
    args = [jnp.asarray(array) for array in data]
    whole, blocks = (
        Cost.of(target.log_density, 4)
        for target in (Target(regression, jax.random.key(0), (*args, block)) for block in (None, 103))
    )
    assert 0.8 * whole.numbers < blocks.numbers < 1.3 * whole.numbers
    assert blocks.at_once < 0.2 * whole.at_once
    assert blocks.largest < 0.2 * whole.largest


def test_files_are_read_in_blocks(data, files, x64):
    whole = Target(regression, jax.random.key(0), tuple(jnp.asarray(array) for array in data))
    of_files = Target(regression, jax.random.key(0), (*files, 100))
    points = jax.random.normal(jax.random.key(1), (5, 4))
    for of in (lambda target: target.log_density, lambda target: jax.grad(target.log_density)):
        expected = jax.vmap(of(whole))(points)
        np.testing.assert_allclose(jax.jit(jax.vmap(of(of_files)))(points), expected, rtol=1e-11)
    assert Unread.most == 100


def test_many_rows_in_single_precision():
    """A sum of 100,000 blocks, to the precision of one number; a plain one is off by far more."""
    rows = Rows("rows", 1_000_000, 10, frozenset())
    values = np.random.default_rng(0).uniform(0.0, 1.0, rows.size).astype(np.float32)
    mean = jax.jit(lambda: rows.mean(lambda chosen: jnp.asarray(values)[chosen].mean()))()
    exact = values.astype(np.float64).mean()
    np.testing.assert_allclose(mean, exact, rtol=3e-7)
    plain = np.cumsum(values.reshape(-1, 10).mean(1), dtype=np.float32)[-1] / 100_000
    assert abs(plain / exact - 1.0) > 1e-6


def test_masked_sites_stay_out(x64):
    def model(y, block=None):
        loc = numpyro.sample("loc", dist.Normal(0, 1).expand([3]).to_event(1))
        with numpyro.plate("all", 3):
            numpyro.sample("unused", dist.Normal(0, 1).mask(False))
        with numpyro.plate("rows", len(y), subsample_size=block):
            numpyro.sample("y", dist.Normal(jnp.sum(loc), 1), obs=numpyro.subsample(y, event_dim=0))

    y = jnp.arange(11.0)
    whole, blocks = (Target(model, jax.random.key(0), (y, block)).fitted for block in (None, 4))
    x = jnp.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(blocks.log_density(x), whole.log_density(x), rtol=1e-12)


def test_fit_of_files(data, files, tmp_path, x64):
    """The posterior is that of all rows; sites in the plate are left out, where a run has some of their rows."""
    exact = FlowVI(regression, progress_bar=False).run(jax.random.key(0), *map(jnp.asarray, data))
    posterior = FlowVI(regression, progress_bar=False).run(jax.random.key(0), *files, 100)
    assert posterior.certified
    np.testing.assert_allclose(posterior.log_evidence, exact.log_evidence, atol=0.01)
    wanted, got = (p.sample(jax.random.key(1), 4_000) for p in (exact, posterior))
    assert got.keys() == {"weights", "sd"}
    for name in got:
        sd = wanted[name].std(0)
        np.testing.assert_allclose(got[name].mean(0) / sd, wanted[name].mean(0) / sd, atol=4 * np.sqrt(2 / 4_000))
        np.testing.assert_allclose(got[name].std(0) / sd, 1.0, atol=4 * np.sqrt(1 / 4_000))
    tree = posterior.to_datatree(num_samples=50)
    assert {"posterior", "sample_stats"} <= set(tree.children)
    assert not {"log_likelihood", "observed_data", "posterior_predictive"} & set(tree.children)
    posterior.save(tmp_path / "fit")
    loaded = FlowPosterior.load(tmp_path / "fit", regression, *files, 100)
    np.testing.assert_allclose(loaded.ess, posterior.ess, rtol=1e-6)
    assert 100 <= Unread.most <= 4_096  # a fingerprint reads more at a time
    np.memmap(tmp_path / "y", files[1].dtype, "r+", shape=files[1].shape)[3] = 5.0
    with pytest.raises(ValueError, match="a file has changed"):
        posterior.save(tmp_path / "fit")
    with pytest.raises(ValueError, match="their fingerprint differs"):
        FlowPosterior.load(tmp_path / "fit", regression, *files, 100)
    np.memmap(tmp_path / "y", files[1].dtype, "r+", shape=files[1].shape)[:] = data[1]
    draws = {name: np.asarray(value).reshape(4, 1_000, *value.shape[1:]) for name, value in got.items()}
    assert verify_fit(regression, draws, jax.random.key(2), *files, 100, verify="weights").certified


with numpyro.handlers.seed(rng_seed=0):
    OUTSIDE = numpyro.plate("rows", 12, subsample_size=4)


def loc_and(likelihood):
    """A model of `y` with a location."""

    def model(y):
        likelihood(numpyro.sample("loc", dist.Normal(0, 1)), y)

    return model


def in_plate(loc, y, plate=None):
    with plate or numpyro.plate("rows", 12, subsample_size=4) as rows:
        numpyro.sample("y", dist.Normal(loc, 1), obs=y[rows])


def in_scan(loc, y):
    scan(lambda carry, row: (carry, in_plate(loc, row)), 0.0, jnp.stack([y, y]))


def hidden(loc, y):
    with numpyro.handlers.block(hide=["rows"]):
        in_plate(loc, y)


def outside_of_the_plate(loc, y):
    with numpyro.plate("rows", 12, subsample_size=4) as rows:
        some = y[rows]
    numpyro.factor("y", dist.Normal(loc, 1).log_prob(some).sum())


def centred_in_a_block(loc, y):
    with numpyro.plate("rows", 12, subsample_size=4) as rows:
        numpyro.sample("y", dist.Normal(loc, 1), obs=y[rows] - y[rows].mean())


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        (in_scan, r"plates of the site 'y' in the model's trace, got \['rows'\]"),
        (hidden, r"plates of the site 'y' in the model's trace, got \['rows'\]"),
        (partial(in_plate, plate=OUTSIDE), r"plates of the site 'y' in the model's trace, got \['rows'\]"),
        (outside_of_the_plate, "a sum over the rows of the plate 'rows', got one that is not"),
        (centred_in_a_block, "a sum over the rows of the plate 'rows', got one that is not"),
    ],
)
def test_rows_that_would_be_left_out(likelihood, message):
    """Each was certified, with a part of its rows."""
    with pytest.raises(ValueError, match=message):
        Target(loc_and(likelihood), jax.random.key(0), (jnp.arange(12.0),))


def test_deterministic_sites_of_some_rows_are_left_out():
    def likelihood(loc, y):
        with numpyro.plate("rows", 12, subsample_size=4) as rows:
            mean = loc + y[rows]
            numpyro.sample("y", dist.Normal(mean, 1), obs=y[rows])
        numpyro.deterministic("of some", mean.mean())
        numpyro.deterministic("of none", 2.0 * loc)

    target = Target(loc_and(likelihood), jax.random.key(0), (jnp.arange(12.0),))
    assert target.constrain(jnp.zeros(1)).keys() == {"loc", "of none"}


def test_files_in_any_plate(tmp_path):
    """Rows along any axis, in a plate that is not subsampled, and after it; other shapes are refused as of arrays."""
    whole = np.random.default_rng(0).normal(size=(3, 12)).astype("f4")
    np.memmap(tmp_path / "y", "f4", "w+", shape=whole.shape)[:] = whole

    def model(y, block):
        loc = numpyro.sample("loc", dist.Normal(0, 1))
        with numpyro.plate("columns", 3, dim=-2), numpyro.plate("rows", 12, dim=-1, subsample_size=block):
            numpyro.sample("y", dist.Normal(loc, 1), obs=numpyro.subsample(y, event_dim=0))
        with numpyro.plate("all", 12):
            total = jnp.asarray(numpyro.subsample(y[0], event_dim=0))
            numpyro.sample("z", dist.Normal(loc, 1), obs=total)
        numpyro.factor("sum", loc * jnp.asarray(numpyro.subsample(y, event_dim=0)).sum())

    file = np.memmap(tmp_path / "y", "f4", "r", shape=whole.shape)
    of_file, of_array = (
        Target(model, jax.random.key(0), (file, 5)),
        Target(model, jax.random.key(0), (jnp.asarray(whole), None)),
    )
    x = jnp.array([0.3])
    np.testing.assert_allclose(of_file.log_density(x), of_array.log_density(x), rtol=1e-5)
    with pytest.raises(ValueError, match="invalid shape of"):
        Target(model, jax.random.key(0), (file[:, :11], 5))


@pytest.mark.parametrize("kind", ["f2", ">f4", "f8", ">i4", "u1", "?"])
def test_files_of_any_numbers(kind, tmp_path):
    whole = np.arange(12).astype(kind)
    np.memmap(tmp_path / "y", kind, "w+", shape=whole.shape)[:] = whole

    def likelihood(loc, y):
        with numpyro.plate("rows", 12, subsample_size=5):
            numpyro.sample("y", dist.Normal(loc, 1), obs=jnp.asarray(numpyro.subsample(y, event_dim=0), float))

    of_file = Target(loc_and(likelihood), jax.random.key(0), (np.memmap(tmp_path / "y", kind, "r"),))
    expected = dist.Normal(0.3, 1).log_prob(whole.astype(float)).sum() + dist.Normal(0, 1).log_prob(0.3)
    np.testing.assert_allclose(of_file.log_density(jnp.array([0.3])), expected, rtol=1e-5)


def test_what_is_refused(data):
    def two(y):
        loc = numpyro.sample("loc", dist.Normal(0, 1))
        for name in ("a", "b"):
            with numpyro.plate(name, 10, subsample_size=5):
                numpyro.sample(f"y_{name}", dist.Normal(loc, 1), obs=numpyro.subsample(y, event_dim=0))

    def local(y):
        with numpyro.plate("rows", 10, subsample_size=5):
            numpyro.sample("y", dist.Normal(numpyro.sample("loc", dist.Normal(0, 1)), 1), obs=y[:5])

    y = jnp.zeros(10)
    with pytest.raises(ValueError, match=r"at most one subsampled plate, got \['a', 'b'\]"):
        Target(two, jax.random.key(0), (y,))
    with pytest.raises(ValueError, match=r"outside of the subsampled plate 'rows', got \['loc'\]"):
        Target(local, jax.random.key(0), (y,))


def test_nuts_needs_all_rows(data):
    args = [jnp.asarray(array) for array in data]
    posterior = FlowVI(regression, progress_bar=False, verify="weights").run(jax.random.key(0), *args, 100)
    with pytest.raises(ValueError, match=re.escape("without a subsampled plate, got 'rows'")):
        compare_with_nuts(posterior, jax.random.key(1))


@pytest.mark.slow
def test_minibatches_are_unbiased(data, x64):
    """The mean over many of them is the density; at the centre each one is, and around it nearly."""
    target = Target(regression, jax.random.key(0), (*map(jnp.asarray, data), 100))
    centre = jnp.array([1.0, -0.5, 0.2, np.log(0.7)])
    minibatch = Minibatch(centre, *jax.value_and_grad(target.log_density)(centre))
    keys = jax.random.split(jax.random.key(1), 2_000)

    def estimates(x):
        return jax.vmap(lambda key: minibatch.log_density(target, key)(x))(keys)

    np.testing.assert_allclose(estimates(centre), target.log_density(centre), rtol=1e-10)
    x = centre + 0.05 * jax.random.normal(jax.random.key(2), (4,))
    found = estimates(x)
    se = found.std() / np.sqrt(found.size)
    np.testing.assert_allclose(found.mean(), target.log_density(x), atol=4 * se)
    rows = jax.vmap(lambda key: jax.random.randint(key, (100,), 0, ROWS))(keys)
    plain = jax.vmap(lambda chosen: target.log_density_with(x, chosen))(rows)
    assert found.std() < 0.2 * plain.std()


@pytest.mark.slow
def test_flow_trained_by_minibatches(x64):
    """Rare events: the posterior is skewed, the Gaussian alone is refused, and the flow is judged on all rows."""

    def model(x, y, block):
        weights = numpyro.sample("weights", dist.Normal(0, 10).expand([2]).to_event(1))
        with numpyro.plate("rows", len(y), subsample_size=block):
            logits = jnp.asarray(numpyro.subsample(x, event_dim=1)) @ jnp.asarray(weights) - 6.0
            numpyro.sample("y", dist.Bernoulli(logits=logits), obs=numpyro.subsample(y, event_dim=0))

    rng = np.random.default_rng(0)
    x = np.stack([rng.uniform(size=20_000) < 0.05, rng.uniform(size=20_000) < 0.02], axis=1).astype(float)
    y = np.zeros(20_000)
    y[np.flatnonzero(x[:, 0])[:3]] = 1
    args = (jnp.asarray(x), jnp.asarray(y), 1_000)
    stages = (GaussianStart(), FlowTraining())
    options: dict[str, Any] = {"progress_bar": False, "stages": stages, "target_ess": 0.95, "fallback": None}
    posterior = FlowVI(model, **options).run(jax.random.key(0), *args)
    assert posterior.certified
    assert posterior.losses.size
    assert posterior.ess > 0.9
    # a step reads a twentieth of the rows, and verdicts take some more
    assert posterior.gradient_evaluations["flow"] < posterior.losses.size * 128 / 5
