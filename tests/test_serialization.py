import equinox as eqx
import flowjax.bijections as fb
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows import flows
from numpyro_flows.serialization import load_tree, save_tree


def round_trip(tree, path):
    save_tree(path / "file", tree)
    return load_tree(path / "file")


def test_trees(tmp_path):
    tree = {"a": (1, 2.5, None, True), "b": [jnp.arange(3), np.float64(2.0), "text"], "f": jnp.tanh}
    again = round_trip(tree, tmp_path)
    assert again["a"] == tree["a"]
    assert isinstance(again["b"][0], jax.Array)
    np.testing.assert_array_equal(again["b"][0], tree["b"][0])
    assert again["f"] is jnp.tanh


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
        save_tree(tmp_path / "file", lambda x: x)
    with pytest.raises(TypeError, match=r"cannot save a builtins\.object"):
        save_tree(tmp_path / "file", object())
    assert not (tmp_path / "file").exists()


def test_files_name_only_modules_and_distributions(tmp_path):
    import json

    structure = json.dumps({"object": "pathlib:Path", "state": {}})
    np.savez(tmp_path / "file.npz", structure=np.array(structure))
    with pytest.raises(ValueError, match="expected a module or a distribution, got pathlib:Path"):
        load_tree(tmp_path / "file.npz")
