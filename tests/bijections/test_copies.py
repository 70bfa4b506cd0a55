"""Every bijection survives a copy, whole: nothing of it lies in its class alone."""

import copy
import pickle
from functools import partial

import equinox as eqx
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from numpyro_flows import flows
from numpyro_flows.continuous import (
    ContinuousFlow,
    Exact,
    FlowMatching,
    Hutchinson,
    HutchPlusPlus,
    LinearField,
    VariancePreserving,
)
from tests.bijections.cases import CASES, FLOWS

_KEY = jax.random.PRNGKey(0)
EVERYTHING = CASES | {
    "ffjord": partial(flows.ffjord, _KEY, 3, cond_dim=2),
    "linear field": lambda: ContinuousFlow(LinearField(2)),
    "exact divergence": Exact,
    "hutchinson": lambda: Hutchinson(_KEY),
    "hutch++": lambda: HutchPlusPlus(_KEY),
    "flow matching": lambda: FlowMatching(VariancePreserving(), "minibatch_ot"),
}


def shaped(name: str):
    """The case with zeros for arrays: nothing is compiled."""
    shapes = eqx.filter_eval_shape(EVERYTHING[name])
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype) if is_shape(leaf) else leaf, shapes)


def is_shape(leaf) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


# fields are those of a class, in whatever dimension
QUICK = [name for name in EVERYTHING if name not in FLOWS or name.endswith(("5d conditional", "4d conditional"))]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in EVERYTHING]
)
def test_copies(name):
    module = shaped(name)
    for again in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), jax.tree.map(lambda leaf: leaf, module)):
        assert jax.tree.structure(again) == jax.tree.structure(module)
        for leaf, other in zip(jax.tree.leaves(module), jax.tree.leaves(again)):
            assert np.array_equal(leaf, other)


SHARDED = [name for name in CASES if name == "scan" or name.endswith(" 2d")]
# Equinox's and Diffrax's own loops do not keep to the types of shards: `jax.shard_map(..., check_vma=False)`
UNTYPED = ("naf", "bnaf", "planar", "sylvester", "bernstein", "residual", "gaussianization", "coupling_gauss")


@pytest.mark.parametrize("name", [name for name in SHARDED if not name.startswith(UNTYPED)])
def test_types_of_shards(name):
    """Loops of both directions, where events or parameters differ by device: traced, not compiled."""
    mesh = jax.make_mesh((1,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    here, everywhere = PartitionSpec("device"), PartitionSpec()
    arrays, static = eqx.partition(eqx.filter_eval_shape(CASES[name]), is_shape)
    x = jax.ShapeDtypeStruct((4, *static.shape), np.float32)

    for direction in ("transform_and_log_det", "inverse_and_log_det"):
        for specs in ((everywhere, here), (here, everywhere)):

            def run(arrays, x, direction=direction, specs=specs):
                if specs[0] == here:
                    arrays = jax.tree.map(lambda leaf: leaf[0], arrays)
                return jax.vmap(getattr(eqx.combine(arrays, static), direction))(x)

            by_device = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), arrays)
            args = (by_device if specs[0] == here else arrays, x)
            y, log_det = jax.eval_shape(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=here), *args)
            assert y.shape == x.shape
            assert log_det.shape == (4,)
