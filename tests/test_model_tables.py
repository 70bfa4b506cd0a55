"""pandas and xarray objects as arguments of a model: it gets arrays, or the user a sentence about the column."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr

from numpyro_flows import FlowPosterior, FlowVI, compare_with_nuts, verify_fit
from numpyro_flows.inference.model_arguments import with_arrays
from numpyro_flows.inference.target import Target

pytestmark = pytest.mark.filterwarnings("ignore:the model gets the DataFrame")
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TABLE = pd.DataFrame({"age": RNG.normal(size=30), "dose": RNG.normal(size=30), "school": np.arange(30) % 3})
TABLE["y"] = 0.5 * TABLE["age"] - TABLE["dose"] + RNG.normal(size=30)
X, Y = TABLE[["age", "dose"]], TABLE["y"]


def regression(x, y, school=None):
    slopes = numpyro.sample("slopes", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
    mean = x @ slopes
    if school is not None:
        effect: Any = numpyro.sample("effect", dist.Normal(0, 1).expand([3]).to_event(1))
        mean += effect[school]
    numpyro.sample("y", dist.Normal(mean, 1), obs=y)


def same_draws(first, second):
    for name, values in first.sample(KEY, 50).items():
        np.testing.assert_array_equal(values, second.sample(KEY, 50)[name])


@pytest.fixture(scope="module")
def posterior():
    return FlowVI(regression, progress_bar=False).run(KEY, X, Y, school=TABLE["school"])


def test_a_fit_to_tables_is_the_fit_to_their_arrays(posterior, tmp_path):
    arrays = X.to_numpy(), Y.to_numpy()
    school = TABLE["school"].to_numpy()
    same_draws(posterior, FlowVI(regression, progress_bar=False).run(KEY, *arrays, school=school))
    assert isinstance(posterior.args[0], np.ndarray)
    assert posterior.kwargs["school"].dtype == np.int64  # which indexes an array
    posterior.save(tmp_path / "fit")
    for args in (arrays, (X, Y)):
        same_draws(posterior, FlowPosterior.load(tmp_path / "fit", regression, *args, school=TABLE["school"]))


def test_the_next_fit_sees_numbers_that_changed_in_place():
    def model(y, scale):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), scale), obs=y)

    y, scale = np.array([1.0]), np.array(1.0)
    fits = FlowVI(model, progress_bar=False)
    first = fits.run(KEY, y, scale)  # alive, so that JAX keeps what it traced
    y[...], scale[...] = -2.0, 2.0
    second = fits.run(KEY, y, scale)
    found = [(draws.mean(), draws.std()) for draws in (fit.sample(KEY, 4_000)["mu"] for fit in (first, second))]
    # sqrt(1 / 4_000) = 0.016 standard deviations
    np.testing.assert_allclose(found, [(0.5, 0.5**0.5), (-0.4, 0.8**0.5)], atol=0.06)


@pytest.mark.slow
def test_other_uses_of_a_model_take_tables(posterior):
    fits = FlowVI(regression, progress_bar=False)
    two = np.stack([Y, 2 * Y])
    many = fits.run_many(KEY, X, pd.DataFrame(two), in_axes=(None, 0))
    assert many.certified.all()
    assert fits.run_several(KEY, 2, X, Y).certified
    compared = compare_with_nuts(posterior, KEY, num_warmup=200, num_samples=500, progress_bar=False)
    assert len(compared.sites) == 5
    draws = {name: np.asarray(values) for name, values in posterior.sample(KEY, 2_000).items()}
    assert verify_fit(regression, draws, KEY, X, Y, school=TABLE["school"]).certified


def test_a_model_that_can_use_a_table_gets_it():
    """As in NumPyro: the mean of a DataFrame is one of each column. An array in its place brings a warning."""

    def standardising(x, convert=jnp.asarray):
        slopes = numpyro.sample("slopes", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.factor("likelihood", -0.5 * jnp.sum((convert((x - x.mean()) / x.std()) @ slopes - Y.to_numpy()) ** 2))

    assert Target(standardising, KEY, (X,)).args[0] is X
    with pytest.warns(UserWarning, match=r"the DataFrame 'x' as an array.* pass x.to_numpy\(\)"):
        target = Target(standardising, KEY, (X, lambda array: array))
    assert isinstance(target.args[0], np.ndarray)


def test_an_error_that_has_nothing_to_do_with_tables_stays():
    def wrong(x):
        return {}["prior_scale"]

    with pytest.raises(KeyError, match=r"^'prior_scale'"):
        Target(wrong, KEY, (X,))

    def wrong_after_the_table(x):
        return {}[x["age"].name]

    # the array fails before: the text has both errors
    with pytest.raises(TypeError, match=r"With the table it stopped with KeyError: 'age'\. With the numbers"):
        Target(wrong_after_the_table, KEY, (X,))


def test_a_fit_in_the_background_has_its_own_numbers():
    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1), obs=y)

    y, handles = np.zeros(1), []
    for value in (1.0, -2.0):
        y[...] = value
        handles.append(FlowVI(model).run_in_background(KEY, y))
    means = [handle.result().sample(KEY, 4_000)["mu"].mean() for handle in handles]
    np.testing.assert_allclose(means, [0.5, -1.0], atol=0.06)


TYPES = {
    "whole": (pd.Series([1, 2, 3]), np.int64),
    "small whole": (pd.Series([1, 2, 3], dtype="int8"), np.int8),
    "whole, may be missing": (pd.Series([1, 2, 3], dtype="Int64"), np.int64),
    "whole, one missing": (pd.Series([1, None, 3], dtype="Int64"), np.float64),
    "Boolean": (pd.Series([True, False]), np.bool_),
    "Boolean, may be missing": (pd.Series([True, False], dtype="boolean"), np.bool_),
    "single": (pd.Series([1.0, 2.0], dtype="float32"), np.float32),
    "columns of two types": (pd.DataFrame({"a": [1, 2], "b": [0.5, 0.25]}), np.float64),
    "columns with truth": (pd.DataFrame({"a": [True, False], "b": [0.5, 0.25]}), np.float64),
    "two columns of one name": (pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), np.float64),
    "no columns": (pd.DataFrame(index=range(3)), np.float64),
    "xarray": (xr.DataArray(np.arange(6).reshape(2, 3), dims=("a", "b")), np.int64),
}


@pytest.mark.parametrize(("table", "dtype"), TYPES.values(), ids=TYPES)
def test_numbers_keep_their_type(table, dtype):
    inside = {"a": [table, (table, "label")], "b": None}
    (first, again), kwargs = with_arrays(regression, (table, inside), {"y": table})
    for array in (first, kwargs["y"], again["a"][0], again["a"][1][0]):
        assert type(array) is np.ndarray
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, table.to_numpy(float, na_value=np.nan) if dtype != np.int64 else table)
    assert again["a"][1][1] == "label"


def test_columns_by_name():
    def by_name(table):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(slope * table["age"], 1), obs=table["y"])

    target = Target(by_name, KEY, (dict(TABLE),))
    assert list(target.args[0]) == list(TABLE.columns)
    with pytest.raises(TypeError, match=r"use the argument 'table', a pandas DataFrame.* pass dict\(table\) to"):
        Target(by_name, KEY, (TABLE,))

    def by_method(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1), obs=y.to_numpy())

    assert Target(by_method, KEY, (Y,)).args[0] is Y  # a model that reads tables itself gets them
    with pytest.raises(AttributeError, match="'list' object has no attribute 'to_numpy'"):
        Target(by_method, KEY, ([1.0],))


WORDS = pd.Series(["a", "b", "c"], name="name")
REFUSED = {
    r"the argument x expected real numbers, got a Series of type str: encode them": (WORDS, np.ones(3)),
    r"the argument y expected real numbers, got a Series of type category": (np.ones(3), WORDS.astype("category")),
    r"the argument y expected .* Series of type object.* with .astype\(float\)": (0, pd.Series([1, 2], dtype=object)),
    r"the argument x expected .* in the columns 'name' \(str\), 'when' \(datetime64": (
        pd.DataFrame({"a": [1.0], "name": ["x"], "when": [pd.Timestamp(0)]}),
        0,
    ),
    r"the argument x\['name'\] expected real numbers, got a Series of type str": (dict(pd.DataFrame(WORDS)), 0),
    r"the argument y expected real numbers, got a Series of type complex128": (0, pd.Series([1j])),
}


@pytest.mark.parametrize(("message", "args"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_is_no_number_is_named(message, args):
    with pytest.raises(TypeError, match=message):
        FlowVI(regression, progress_bar=False).run(KEY, *args)


@pytest.mark.parametrize("dtype", ["float64", "Float64"])
def test_missing_values_are_refused_as_data(dtype):
    y = Y.astype(dtype)
    y[2] = None
    with pytest.raises(ValueError, match="observed values that are finite, got 1 of 30 NaN or infinite at 'y'"):
        FlowVI(regression, progress_bar=False).run(KEY, X, y)
