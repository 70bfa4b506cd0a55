import json

import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows import flows
from numpyro_flows.continuous import Energies
from numpyro_flows.serialization import load_tree, save_tree


def round_trip(tree, path):
    save_tree(path / "file", "test", tree)
    return load_tree(path / "file", "test")


def test_trees(tmp_path):
    tree = {"a": (1, 2.5, None, True), "b": [jnp.arange(3), np.float64(2.0), "text"], "f": jnp.tanh}
    tree["named"] = Energies(0.5, (1, 2))
    again = round_trip(tree, tmp_path)
    assert again["a"] == tree["a"]
    assert isinstance(again["b"][0], jax.Array)
    np.testing.assert_array_equal(again["b"][0], tree["b"][0])
    assert again["f"] is jnp.tanh
    assert again["named"] == tree["named"]
    assert isinstance(again["named"], Energies)


@pytest.mark.parametrize(
    "make",
    [
        lambda: flows.nsf_coupling(jax.random.key(0), 3, num_layers=2),
        lambda: fb.Chain([fb.Affine(jnp.ones(3)), fb.Invert(fb.Tanh((3,)))]),
    ],
    ids=["ours", "flowjax"],
)
def test_bijections(make, tmp_path):
    bijection = make()
    again = round_trip(bijection, tmp_path)
    assert eqx.tree_equal(again, bijection)
    x = 0.1 * jnp.ones(3)
    np.testing.assert_array_equal(again.transform_and_log_det(x)[0], bijection.transform_and_log_det(x)[0])


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match="cannot be imported"):
        save_tree(tmp_path / "file", "test", lambda x: x)
    with pytest.raises(TypeError, match=r"cannot save a builtins\.object"):
        save_tree(tmp_path / "file", "test", object())
    assert not (tmp_path / "file").exists()


def write(path, tree, version=1, kind="test"):
    np.savez(path, structure=np.array(json.dumps({"format": version, "kind": kind, "tree": tree})))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"object": "pathlib:Path", "state": {}}, "expected names of .*, got 'pathlib:Path'"),
        ({"function": "os:system"}, "got 'os:system'"),
        # reached through a trusted module that imports it
        ({"function": "numpyro_flows.serialization:os.system"}, "expected a class or function that .* defines"),
        ({"function": "numpyro_flows.serialization:nothing"}, "this version can read"),
        ({"object": "jax._src.nn.functions:silu", "state": {}}, "expected a (module or a distribution|class)"),
        ({"object": "numpyro_flows.recipe:FitRecipe", "state": {}}, "expected a module or a distribution"),
        ({"named": "os:stat_result", "items": []}, "got 'os:stat_result'"),
        ({"named": "numpyro_flows.continuous.flow:ContinuousFlow", "items": []}, "expected a named tuple"),
    ],
)
def test_a_file_names_only_what_is_trusted(tree, message, tmp_path):
    write(tmp_path / "file.npz", tree)
    with pytest.raises(ValueError, match=message):
        load_tree(tmp_path / "file.npz", "test")


def test_a_package_that_the_user_trusts(tmp_path):
    save_tree(tmp_path / "file", "test", np.mean)
    with pytest.raises(ValueError, match="say so by `trusted`"):
        load_tree(tmp_path / "file", "test")
    assert load_tree(tmp_path / "file", "test", trusted=("numpy",)) is np.mean


def test_foreign_truncated_newer_and_other_files(tmp_path):
    path = tmp_path / "file"
    save_tree(path, "test", {"a": jnp.arange(1000)})
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected a whole file saved by numpyro_flows"):
            load_tree(path, "test")
    with pytest.raises(FileNotFoundError):
        load_tree(tmp_path / "missing", "test")
    write(tmp_path / "new.npz", None, version=2)
    with pytest.raises(ValueError, match="format 2 of a newer numpyro_flows"):
        load_tree(tmp_path / "new.npz", "test")
    write(tmp_path / "other.npz", None, kind="FlowPosterior")
    with pytest.raises(ValueError, match="expected a file with a test, got one with a FlowPosterior"):
        load_tree(tmp_path / "other.npz", "test")
    np.savez(tmp_path / "numpy.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="expected a whole file"):
        load_tree(tmp_path / "numpy.npz", "test")
