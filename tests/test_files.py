"""Saved files: what survives, and what cannot be saved."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform, ExpTransform, biject_to
from safetensors.numpy import load_file

import numpyro_flows.bijections
import numpyro_flows.continuous
import numpyro_flows.networks
from numpyro_flows import FlowDistribution
from numpyro_flows.bijections import AbstractBijection, Affine, Chain
from numpyro_flows.continuous import Energies
from numpyro_flows.files.table import TABLE, find
from numpyro_flows.files.tree import load_tree, save_tree


def round_trip(tree: Any, folder: Path, **options: Any) -> Any:
    save_tree(folder / "file", "test", tree)
    return load_tree(folder / "file", "test", Any, **options)


def assert_same(again: Any, value: Any) -> None:
    assert type(again) is type(value)
    assert jax.tree.structure(again) == jax.tree.structure(value)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(value)):
        np.testing.assert_array_equal(a, b)


def test_plain_values(tmp_path):
    tree = {"a": (1, 2.5, None, True, -np.inf), "b": [np.float64(2.0), "te\u0301xt", np.int64(3)], 3: jnp.tanh}
    tree["named"] = Energies(0.5, 1.0)
    again = round_trip(tree, tmp_path)
    assert again == tree
    assert isinstance(again["named"], Energies)
    assert np.isnan(round_trip(float("nan"), tmp_path))


ARRAYS = {
    "float32": lambda: jnp.array([1.0, np.nan, -np.inf]),
    "float16": lambda: jnp.ones((2, 1), jnp.float16),
    "bfloat16": lambda: jnp.arange(3, dtype=jnp.bfloat16),
    "scalar of bfloat16": lambda: jnp.array(2.0, jnp.bfloat16),
    "bool": lambda: jnp.array([True, False]),
    "uint8": lambda: jnp.arange(3, dtype=jnp.uint8),
    "complex": lambda: jnp.array([1j, 2.0]),
    "scalar": lambda: jnp.array(2.0),
    "no elements": lambda: jnp.zeros((0, 3)),
    "numpy's float64": lambda: np.arange(6.0).reshape(2, 3).T,
    "numpy's int8 without elements": lambda: np.zeros((2, 0), np.int8),
    "numpy's scalar": lambda: np.array(True),
    "backwards": lambda: np.arange(3)[::-1],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name, tmp_path):
    array = ARRAYS[name]()
    again = round_trip([array], tmp_path)[0]
    assert (type(again), again.dtype, again.shape) == (type(array), array.dtype, array.shape)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(array))


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_random_keys(implementation, tmp_path):
    key = jax.random.split(jax.random.key(3, impl=implementation))
    again = round_trip(key, tmp_path)
    assert again.dtype == key.dtype
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(key))


def test_arrays_in_double_precision(x64, tmp_path):
    array = jnp.array([1.0, np.pi])
    again = round_trip(array, tmp_path)
    assert again.dtype == np.float64
    np.testing.assert_array_equal(again, array)


def test_a_file_is_one_that_safetensors_reads(tmp_path):
    save_tree(tmp_path / "file", "test", {"a": jnp.arange(3.0)})
    np.testing.assert_array_equal(list(load_file(tmp_path / "file").values()), [[0.0, 1.0, 2.0]])


HALF = jnp.array([0.5, 0.5])
DISTRIBUTIONS: dict[str, Callable[[], dist.Distribution]] = {
    "normal": lambda: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
    "expanded": lambda: dist.Gamma(2.0, 1.0).expand([3, 2]).to_event(2),
    "masked": lambda: dist.Normal(jnp.zeros(2), 1.0).mask(jnp.array([True, False])),
    "half cauchy": lambda: dist.HalfCauchy(1.0),
    "uniform": lambda: dist.Uniform(0.0, 1.0),
    "truncated": lambda: dist.TruncatedNormal(0.0, 1.0, low=0.0),
    "student": lambda: dist.StudentT(5.0, jnp.zeros(2), 1.0).to_event(1),
    "beta": lambda: dist.Beta(1.0, 2.0),
    "dirichlet": lambda: dist.Dirichlet(HALF),
    "lkj": lambda: dist.LKJCholesky(3, 1.0),
    "multivariate": lambda: dist.MultivariateNormal(jnp.zeros(2), covariance_matrix=jnp.eye(2)),
    "low rank": lambda: dist.LowRankMultivariateNormal(jnp.zeros(2), jnp.ones((2, 1)), jnp.ones(2)),
    "mixture": lambda: dist.MixtureSameFamily(dist.Categorical(HALF), dist.Normal(jnp.zeros(2), 1.0)),
    "general mixture": lambda: dist.MixtureGeneral(dist.Categorical(HALF), [dist.Normal(), dist.Cauchy()]),
    "log normal": lambda: dist.LogNormal(0.0, 1.0),
    "transformed": lambda: dist.TransformedDistribution(dist.Normal(), [ExpTransform(), AffineTransform(1.0, 2.0)]),
    "zero sum": lambda: dist.ZeroSumNormal(1.0, (3,)),
    "von Mises": lambda: dist.VonMises(0.0, 1.0),
    "improper": lambda: dist.ImproperUniform(constraints.positive, (), (2,)),
    "hurdle": lambda: dist.HurdleNegativeBinomial2(0.2, 2.0, 3.0),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions(name, tmp_path):
    assert_same(round_trip(DISTRIBUTIONS[name](), tmp_path), DISTRIBUTIONS[name]())


SINGLE = [name for name in constraints.__all__ if isinstance(getattr(constraints, name), constraints.Constraint)]
SUPPORTS = {
    "interval": constraints.interval(0.0, jnp.ones(2)),
    "open interval": constraints.open_interval(0.0, 1.0),
    "greater than": constraints.greater_than(2.0),
    "greater than or equal": constraints.greater_than_eq(2.0),
    "less than": constraints.less_than(2.0),
    "independent": constraints.independent(constraints.positive, 2),
    "cat": constraints.cat([constraints.real, constraints.positive]),
    "zero sum": constraints.zero_sum(1),
    "multinomial": constraints.multinomial(3),
}


# `dependent` stands for supports that depend on parameters: no distribution has it once they are known
@pytest.mark.parametrize("name", [name for name in SINGLE if name != "dependent"])
def test_constraints_without_parameters_come_back_as_the_same_object(name, tmp_path):
    constraint = getattr(constraints, name)
    assert round_trip(constraint, tmp_path) is constraint


@pytest.mark.parametrize("name", SUPPORTS)
def test_supports_and_their_transforms(name, tmp_path):
    support = SUPPORTS[name]
    assert np.all(round_trip(support, tmp_path).eq(support))
    try:
        transform = biject_to(support)
    except NotImplementedError:  # no continuous support
        return
    assert np.all(round_trip(transform, tmp_path).eq(transform))
    assert np.all(round_trip(transform.inv, tmp_path).inv.eq(transform))


def test_a_flow_on_positive_numbers_and_what_fitted_it(tmp_path):
    flow = FlowDistribution(Affine(jnp.zeros(2)), constrain=biject_to(constraints.positive))
    flow.save(tmp_path / "flow")
    again = FlowDistribution.load(tmp_path / "flow")
    x = jnp.array([0.3, 2.0])
    np.testing.assert_array_equal(again.log_prob(x), flow.log_prob(x))
    assert again.fit is None


class Half(AbstractBijection):
    """A user's own bijection."""

    factor: jax.Array
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True, default=None)

    def _transform(self, x, condition):
        return x * self.factor, x.size * jnp.log(self.factor)

    def _inverse(self, y, condition):
        return y / self.factor, -y.size * jnp.log(self.factor)


def test_classes_of_others_are_trusted_one_by_one(tmp_path):
    flow = FlowDistribution(Chain([Half(factor=jnp.array(0.5), shape=(2,)), Affine(jnp.zeros(2))]))
    flow.save(tmp_path / "flow")
    with pytest.raises(ValueError, match=r"at bijection.bijections\[0\]: the file has .*Half'.*`trusted=\(Half,\)`"):
        FlowDistribution.load(tmp_path / "flow")
    again = FlowDistribution.load(tmp_path / "flow", trusted=(Half,))
    assert_same(again.bijection, flow.bijection)
    theirs = fb.Chain([fb.Affine(jnp.ones(3)), fb.Invert(fb.Tanh((3,)))])
    save_tree(tmp_path / "file", "test", theirs)
    import paramax

    trusted = (fb.Chain, fb.Affine, fb.Invert, fb.Tanh, paramax.Parameterize)
    assert_same(load_tree(tmp_path / "file", "test", Any, trusted=trusted), theirs)
    for wrong in ("name", Half, ("name",), (object,), (jnp.tanh,)):
        with pytest.raises(TypeError, match="trusted expected a tuple of classes"):
            FlowDistribution.load(tmp_path / "flow", trusted=wrong)  # pyright: ignore[reportArgumentType]


def test_what_cannot_be_saved_says_so_and_leaves_the_old_file(tmp_path):
    save_tree(tmp_path / "file", "test", 1)
    with pytest.raises(TypeError, match=r"cannot save a builtins.function in \['f'\]: .* `trusted`"):
        save_tree(tmp_path / "file", "test", {"f": lambda x: x})
    with pytest.raises(TypeError, match=r"cannot save a builtins\.object"):
        save_tree(tmp_path / "file", "test", object())
    with pytest.raises(TypeError, match="cannot save an array of"):
        save_tree(tmp_path / "file", "test", np.array(["a"]))
    wrong = eqx.tree_at(lambda affine: affine.loc, Affine(jnp.zeros(2)), "text")
    with pytest.raises(TypeError, match=r"cannot save .loc of numpyro_flows.bijections.Affine: expected Float"):
        save_tree(tmp_path / "file", "test", wrong)
    assert load_tree(tmp_path / "file", "test", int) == 1
    assert os.listdir(tmp_path) == ["file"]


def test_every_public_class_is_in_the_table():
    """A new bijection, conditioner, field or estimator must be one that files may name."""
    known = [find(name) for name in TABLE]
    for module in (
        numpyro_flows.bijections,
        numpyro_flows.continuous,
        numpyro_flows.networks,
        numpyro_flows.embeddings,
    ):
        for name, cls in vars(module).items():
            if isinstance(cls, type) and issubclass(cls, eqx.Module) and "Abstract" not in name:
                assert any(cls is one for one in known), (
                    f"{module.__name__}.{name} is not in numpyro_flows/files/table.py"
                )
