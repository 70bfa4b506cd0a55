"""Files of an enemy, and broken ones: a `ValueError` that says what and where, and nothing in them is ever run."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.transforms import AffineTransform, ComposeTransform, ExpTransform

from numpyro_flows import FlowDistribution
from numpyro_flows.bijections import Affine, Chain, Coupling, Permutation, RationalQuadraticSpline
from numpyro_flows.files.container import pack, unpack
from numpyro_flows.files.tree import load_tree, save_tree
from tests.test_files import assert_same

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
    with pytest.raises(ValueError, match=r"no longer reads its old \.npz files"):
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
