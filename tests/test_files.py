"""Saved files: what survives, what is refused, and that nothing in a file is ever run."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
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
from numpyro.distributions.transforms import AffineTransform, ComposeTransform, ExpTransform, biject_to
from safetensors.numpy import load_file

import numpyro_flows.bijections
import numpyro_flows.continuous
import numpyro_flows.networks
from numpyro_flows import FlowDistribution
from numpyro_flows.bijections import AbstractBijection, Affine, Chain, Coupling, Permutation, RationalQuadraticSpline
from numpyro_flows.continuous import Energies
from numpyro_flows.files.container import pack, unpack
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
    for module in (numpyro_flows.bijections, numpyro_flows.continuous, numpyro_flows.networks):
        for name, cls in vars(module).items():
            if isinstance(cls, type) and issubclass(cls, eqx.Module) and "Abstract" not in name:
                assert any(cls is one for one in known), (
                    f"{module.__name__}.{name} is not in numpyro_flows/files/table.py"
                )


# Crafted files: edits of a small file whose checksum of the structure is made anew, so that it is no guard.


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """A flow with all that a file can have, and nothing that takes long to trace."""
    layers = Chain([Coupling(jax.random.PRNGKey(0), 2, RationalQuadraticSpline(3), hidden=(2,)), Permutation([1, 0])])
    constrain = ComposeTransform([AffineTransform(jnp.ones(()), 2.0), ExpTransform()])
    flow = FlowDistribution(layers, dist.StudentT(5.0, jnp.zeros(2), 1.0).to_event(1), constrain=constrain)
    path = tmp_path_factory.mktemp("small") / "flow"
    flow.save(path)
    FlowDistribution.load(path)
    return path.read_bytes()


def bijections(structure) -> list:
    return structure["fields"]["bijection"]["fields"]["bijections"]["tuple"]


def coupling(structure) -> dict:
    return bijections(structure)[0]["fields"]


def permutation(structure) -> dict:
    return bijections(structure)[1]["fields"]


def base(structure) -> dict:
    return structure["fields"]["base_dist"]["fields"]


def put(place: Callable[[Any], dict], key: str, value: Any) -> Callable[[Any], None]:
    def edit(structure: Any) -> None:
        place(structure)[key] = value

    return edit


def module(name: str, **fields: Any) -> dict:
    return {"class": name, "fields": fields}


def nested(levels: int) -> dict:
    node: dict = {"list": []}
    for _ in range(levels):
        node = {"list": [node]}
    return node


def fields(structure) -> dict:
    return structure["fields"]


CALLS = [
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "pathlib.Path",
    "numpy.load",
    "jax.jit",
    "importlib.import_module",
]
NAMES = [
    *CALLS,
    "posix:system",
    "numpyro_flows.files.table.importlib.sys",
    "numpyro_flows.bijections.coupling.Coupling",
    "numpyro_flows.bijections.Chain.__init__",
    "numpyro_flows.bijections.\u0421hain",  # a Cyrillic letter
    "equinox.Partial",
    "equinox._module.Partial",
    "jax.tree_util.Partial",
    "functools.partial",
    "tests.test_files.Half",
    "numpyro.distributions.EulerMaruyama",
    "numpyro.distributions.transforms.UnpackTransform",
    "",
    "__class__",
]
EDITS: dict[str, Callable[[Any], Any]] = {
    **{f"function {name!r}": put(coupling, "conditioner", {"object": name}) for name in NAMES},
    **{f"class {name!r}": put(coupling, "conditioner", module(name, func="id", args=[])) for name in NAMES},
    "a class for an object": put(coupling, "conditioner", {"object": "numpyro_flows.bijections.Chain"}),
    "an object for a class": put(coupling, "conditioner", module("jax.nn.relu")),
    "a shadowed method": put(coupling, "transform_and_log_det", {"object": "jax.numpy.tanh"}),
    "a shadowed private method": put(coupling, "_transform", {"object": "jax.numpy.tanh"}),
    "__class__": put(coupling, "__class__", "Chain"),
    "__dict__": put(coupling, "__dict__", {"dict": []}),
    "__reduce__": put(coupling, "__reduce__", {"object": "jax.numpy.tanh"}),
    "a shadowed method of a distribution": put(base, "log_prob", {"object": "jax.numpy.tanh"}),
    "a shadowed method of a flow": put(fields, "sample", {"object": "jax.numpy.tanh"}),
    "a field too few": lambda s: coupling(s).pop("conditioner"),
    "no fields": lambda s: coupling(s).clear(),
    "a field too few of a distribution": lambda s: base(s).pop("base_dist"),
    "a constraint for a network": put(coupling, "conditioner", {"object": "numpyro.distributions.constraints.real"}),
    "an activation for a univariate": put(coupling, "univariate", {"object": "jax.nn.relu"}),
    "a string for a univariate": put(coupling, "univariate", "numpyro_flows.bijections.AffineUnivariate"),
    "a string for an array": put(permutation, "permutation", "1, 0"),
    "a list for an array": put(permutation, "permutation", {"list": [1, 0]}),
    "an object for an array": put(permutation, "permutation", module("numpyro_flows.bijections.DCT")),
    "an activation for an array": put(permutation, "permutation", {"object": "jax.nn.relu"}),
    "a number for an array": put(permutation, "permutation", 1),
    "None for an array": put(permutation, "permutation", None),
    "a list for a shape": put(permutation, "shape", {"list": [2]}),
    "a bool in a shape": put(permutation, "shape", {"tuple": [True]}),
    "a float in a shape": put(permutation, "shape", {"tuple": [2.0]}),
    "a string for a shape": put(permutation, "shape", "(2,)"),
    "a negative shape": put(permutation, "shape", {"tuple": [-2]}),
    "another shape than the arrays": put(lambda s: s["fields"]["bijection"]["fields"], "shape", {"tuple": [3]}),
    "another shape of a layer": put(permutation, "shape", {"tuple": [5]}),
    "another event shape of the base": put(base, "_event_shape", {"tuple": [7]}),
    "a condition that is none": put(coupling, "cond_shape", "x"),
    "a bijection for a base": lambda s: s["fields"].update(base_dist=s["fields"]["bijection"]),
    "a base for a bijection": lambda s: s["fields"].update(bijection=s["fields"]["base_dist"]),
    "a flow for a bijection": put(fields, "bijection", {"tuple": []}),
    "no layers": lambda s: bijections(s).clear(),
    "layers that are a list": put(lambda s: s["fields"]["bijection"]["fields"], "bijections", {"list": []}),
    "a layer that is a number": lambda s: bijections(s).append(1),
    "an array twice": lambda s: permutation(s).update(permutation=permutation(s)["inverse_permutation"]),
    "an array that is missing": lambda s: permutation(s)["permutation"].update(array="99"),
    "an array left over": put(
        permutation, "permutation", {"array": "99", "is": "jax", "dtype": "int32", "checksum": ""}
    ),
    "an array of another type": lambda s: permutation(s)["permutation"].update(dtype="float32"),
    "an array of an unknown type": lambda s: permutation(s)["permutation"].update(dtype="object"),
    "an array that is a key": lambda s: permutation(s)["permutation"].update({"is": "threefry2x32"}),
    "an array of somebody else": lambda s: permutation(s)["permutation"].update({"is": "torch"}),
    "a wrong checksum": lambda s: permutation(s)["permutation"].update(checksum="0" * 64),
    "a checksum that is a number": lambda s: permutation(s)["permutation"].update(checksum=0),
    "an array without checksum": lambda s: permutation(s)["permutation"].pop("checksum"),
    "an array with more": lambda s: permutation(s)["permutation"].update(more=1),
    "a node of no kind": put(fields, "condition", {"pickle": "gASVBQ=="}),
    "an empty node": put(fields, "condition", {}),
    "a node of two kinds": put(fields, "condition", {"list": [], "tuple": []}),
    "a bare list": put(fields, "condition", [1, 2]),
    "a float that is none": put(fields, "condition", {"float": "1e999"}),
    "a dict with odd pairs": put(fields, "condition", {"dict": [[1]]}),
    "a dict with a key twice": put(fields, "condition", {"dict": [["a", 1], ["a", 2]]}),
    "a dict with a key that is a list": put(fields, "condition", {"dict": [[[1], 2]]}),
    "deep nesting": put(fields, "condition", nested(150)),
    "a fit that is a number": put(fields, "fit", 3),
    "a fit that is a tuple": put(fields, "fit", {"tuple": [1]}),
    "a fit of another class": put(
        fields, "fit", module("numpyro_flows.continuous.Energies", kinetic=0.0, jacobian=0.0, path_length=0.0)
    ),
    "a condition beyond all memory": put(coupling, "cond_shape", {"tuple": [10**12]}),
    "a flag that is a number": put(fields, "is_vector", 1),
    "a validation that is a list": put(base, "_validate_args", {"list": []}),
    "a transform that is a constraint": put(fields, "constrain", {"object": "numpyro.distributions.constraints.real"}),
    "a spline of no bins": lambda s: coupling(s)["univariate"]["fields"].update(num_bins=0),
    "a spline of other bins": lambda s: coupling(s)["univariate"]["fields"].update(num_bins=4, num_params=11),
    "a spline of a negative bound": lambda s: coupling(s)["univariate"]["fields"].update(bound=-5.0),
    "a spline of an infinite bound": lambda s: coupling(s)["univariate"]["fields"].update(bound={"float": "inf"}),
    "a number beyond all": lambda s: coupling(s)["univariate"]["fields"].update(bound="9" * 40),
    "a top that is no flow": lambda s: module("numpyro_flows.bijections.DCT", shape={"tuple": [2]}, cond_shape=None),
    "a top that is a list": lambda s: {"list": [s]},
    "a top that is None": lambda s: "nothing",
}


@pytest.fixture
def armed(monkeypatch, tmp_path):
    """Whoever runs a command leaves a trace: the audit hook of Python sees every process, import and evaluation."""
    seen: list[str] = []
    watching = [True]

    def watch(event: str, args: tuple) -> None:
        if watching[0] and event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class"):
            seen.append(event)

    sys.addaudithook(watch)
    yield seen
    watching[0] = False


def refusal(path):
    """What `load` says of a file that it refuses."""
    try:
        FlowDistribution.load(path)
    except ValueError as error:
        return str(error)
    return "loaded"


def test_crafted_structures(small, tmp_path, armed):
    assert len(EDITS) >= 60
    path = tmp_path / "flow"
    for name, edit in EDITS.items():
        kind, structure, arrays = unpack(small)
        changed = edit(structure)
        whole = structure if not (isinstance(changed, dict) and ("class" in changed or "list" in changed)) else changed
        whole = None if changed == "nothing" else whole
        path.write_bytes(pack(kind, whole, arrays))
        assert refusal(path).startswith("expected a whole file saved by numpyro_flows,"), name
    assert not armed


def with_header(data: bytes, edit: Callable[[dict], Any]) -> bytes:
    """A file with another header, whose own checksum stays as it was."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = edit(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def one(header: dict) -> dict:
    return header[max(name for name in header if name != "__metadata__")]


HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "text": lambda data: b"hello, I am a flow",
    "a zip archive": lambda data: b"PK\x03\x04" + data,
    "a pickle": lambda data: b"\x80\x04\x95cos\nsystem\n." + data,
    "a huge header": lambda data: (2**63 - 1).to_bytes(8, "little") + data[8:],
    "a header beyond the end": lambda data: len(data).to_bytes(8, "little") + data[8:],
    "no header": lambda data: bytes(8) + data[8:],
    "trailing bytes": lambda data: data + b"\0",
    "leading bytes": lambda data: b"\0" + data,
    "a header that is a list": lambda data: with_header(data, lambda header: "[]"),
    "a header that nests": lambda data: with_header(data, lambda header: "[" * 100_000),
    "no UTF-8": lambda data: data[:9] + b"\xff" + data[10:],
    "NaN": lambda data: with_header(data, lambda header: json.dumps(header)[:-1] + ', "x": NaN}'),
    "Infinity": lambda data: with_header(data, lambda header: json.dumps(header)[:-1] + ', "x": -Infinity}'),
    "a key twice": lambda data: with_header(data, lambda header: json.dumps(header)[:-1] + ', "0": {}}'),
    "no metadata": lambda data: with_header(data, lambda header: header.pop("__metadata__")),
    "metadata that is text": lambda data: with_header(data, lambda header: header.update(__metadata__="x")),
    "another format": lambda data: with_header(data, lambda header: header["__metadata__"].update(format="3")),
    "another kind": lambda data: with_header(data, lambda header: header["__metadata__"].update(kind="FlowPosterior")),
    "more metadata": lambda data: with_header(data, lambda header: header["__metadata__"].update(more="x")),
    "a number in the metadata": lambda data: with_header(data, lambda header: header["__metadata__"].update(kind=1)),
    "another structure": lambda data: with_header(data, lambda header: header["__metadata__"].update(structure="1")),
    "another type": lambda data: with_header(data, lambda header: one(header).update(dtype="BOOL")),
    "an unknown type": lambda data: with_header(data, lambda header: one(header).update(dtype="F8_E4M3")),
    "a type that is a list": lambda data: with_header(data, lambda header: one(header).update(dtype=[])),
    "a huge shape": lambda data: with_header(data, lambda header: one(header).update(shape=[2**62, 2**62])),
    "a negative shape": lambda data: with_header(data, lambda header: one(header).update(shape=[-1])),
    "a shape of floats": lambda data: with_header(data, lambda header: one(header).update(shape=[2.0])),
    "a shape of bools": lambda data: with_header(data, lambda header: one(header).update(shape=[True])),
    "offsets beyond the end": lambda data: with_header(
        data, lambda header: one(header).update(data_offsets=[0, 2**40])
    ),
    "one offset": lambda data: with_header(data, lambda header: one(header).update(data_offsets=[0])),
    "offsets backwards": lambda data: with_header(data, lambda header: one(header)["data_offsets"].reverse()),
    "more about an array": lambda data: with_header(data, lambda header: one(header).update(pickle="x")),
    "an array less": lambda data: with_header(data, lambda header: header.pop("0")),
    "an empty array more": lambda data: with_header(
        data, lambda header: header.update(x={"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]})
    ),
    "an array over another": lambda data: with_header(data, lambda header: header.update({"1": header["0"]})),
}


def test_crafted_containers(small, tmp_path):
    path = tmp_path / "flow"
    for name, edit in HEADERS.items():
        path.write_bytes(edit(small))
        assert refusal(path).startswith("expected a whole file saved by numpyro_flows,"), name


def test_files_of_another_kind_or_version_say_so(small, tmp_path):
    save_tree(tmp_path / "file", "FlowPosterior", 1)
    with pytest.raises(ValueError, match="expected a file with a FlowDistribution, got one with a FlowPosterior"):
        FlowDistribution.load(tmp_path / "file")
    np.savez(tmp_path / "old.npz", structure=np.zeros(1))
    with pytest.raises(ValueError, match=r"no longer reads its \.npz files of old"):
        FlowDistribution.load(tmp_path / "old.npz")
    (tmp_path / "new").write_bytes(HEADERS["another format"](small))
    with pytest.raises(ValueError, match="expected format 2, got format '3': a file of another version"):
        FlowDistribution.load(tmp_path / "new")
    with pytest.raises(FileNotFoundError):
        FlowDistribution.load(tmp_path / "missing")


def test_flipped_bits_and_truncations(tmp_path):
    """Each is found, or changes nothing that counts."""
    tree = {"a": jnp.arange(5.0), "b": [Affine(jnp.array([1.0, 2.0])), "text"], "c": np.zeros((0, 2))}
    path, rng = tmp_path / "file", np.random.default_rng(0)
    save_tree(path, "test", tree)
    whole = path.read_bytes()
    flips = [(whole[:i] + bytes([whole[i] ^ (1 << bit)]) + whole[i + 1 :]) for i, bit in _places(whole, rng, 500)]
    cuts = [whole[:size] for size in rng.choice(len(whole), 50, replace=False)]
    survived, messages = 0, set()
    for content in flips + cuts:
        path.write_bytes(content)
        try:
            assert_same(load_tree(path, "test", Any), tree)
            survived += 1
        except ValueError as error:
            messages.add(str(error)[:45])
    assert messages == {"expected a whole file saved by numpyro_flows,"}
    assert survived < 0.1 * len(flips)  # blanks of the header


def _places(data: bytes, rng: np.random.Generator, num: int) -> list[tuple[int, int]]:
    return list(zip(rng.integers(len(data), size=num), rng.integers(8, size=num)))


def test_loading_takes_memory_of_the_order_of_the_file(tmp_path):
    import tracemalloc

    save_tree(tmp_path / "file", "test", np.zeros(5_000_000))
    size = os.path.getsize(tmp_path / "file")
    tracemalloc.start()
    load_tree(tmp_path / "file", "test", Any)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * size


# Writing: processes that write and read bytes, without JAX, which takes seconds to import.

ATOMIC = str(Path(numpyro_flows.__file__).parent / "files" / "atomic.py")
SCRIPT = f"""
import importlib.util, sys, threading
spec = importlib.util.spec_from_file_location("atomic", {ATOMIC!r})
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
path = sys.argv[1]
"""
ENDLESS_WRITER = (
    SCRIPT
    + """
data = sys.argv[2].encode() * int(sys.argv[3])
print("ready", flush=True)
while True:
    atomic.write_whole(path, data)
"""
)
WRITER = SCRIPT + "for _ in range(30): atomic.write_whole(path, sys.argv[2].encode() * 300_000)\n"
READER = (
    SCRIPT
    + """
for _ in range(100):
    content = open(path, "rb").read()
    assert len(content) == 300_000 and len(set(content)) == 1, (len(content), set(content))
"""
)


def test_killed_while_it_writes(tmp_path):
    """20 times at random moments: the file is the old one or the new one, whole."""
    path, rng, size = tmp_path / "file", np.random.default_rng(0), 500_000
    path.write_bytes(b"o" * size)
    for letter in "abcdefghijklmnopqrst":
        arguments = [sys.executable, "-S", "-c", ENDLESS_WRITER, str(path), letter, str(size)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        content = path.read_bytes()
        assert len(content) == size
        assert len(set(content)) == 1


def test_writers_and_readers_at_once(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"o" * 300_000)
    commands = [[WRITER, str(path), letter] for letter in "abcd"] + [[READER, str(path)]] * 4
    processes = [subprocess.Popen([sys.executable, "-S", "-c", *command]) for command in commands]
    assert [process.wait() for process in processes] == [0] * 8
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_links_and_failures(tmp_path):
    path, other = tmp_path / "file", tmp_path / "made by open"
    other.touch()
    save_tree(path, "test", 1)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    save_tree(tmp_path / "link", "test", 2)
    assert (tmp_path / "link").is_symlink()
    assert load_tree(path, "test", int) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(IsADirectoryError):
        save_tree(tmp_path, "test", 3)
    with pytest.raises(FileNotFoundError):
        save_tree(tmp_path / "none" / "file", "test", 3)
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "made by open"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """As a limit on the size of files does."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    script = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" + SCRIPT
    script += "try: atomic.write_whole(path, b'n' * 100_000)\nexcept OSError: sys.exit(7)\n"
    assert subprocess.run([sys.executable, "-S", "-c", script, str(path)]).returncode == 7
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
