"""Files whose base distribution has other shapes than the flow: refused, or what they load keeps its word."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_flows import FlowDistribution
from numpyro_flows.bijections import Affine
from numpyro_flows.files.container import checksum_of, pack, unpack

BASES: dict[str, Any] = {
    "normal": dist.Normal(jnp.zeros(2), 1.0).to_event(1),
    "batch": dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(1),
    "expanded": dist.Gamma(2.0, 1.0).expand([2]).to_event(1),
}
SHAPES = [(), (1,), (3,), (2, 2), (10**9,)]


def shapes_in(node: Any):
    """The nodes of a structure that are shapes."""
    if isinstance(node, dict):
        if list(node) == ["tuple"] and all(isinstance(size, int) for size in node["tuple"]):
            yield node
        for child in node.values():
            yield from shapes_in(child)


def arrays_in(node: Any):
    """The nodes of a structure that are arrays."""
    if isinstance(node, dict):
        if "array" in node:
            yield node
        for child in node.values():
            yield from arrays_in(child)


@pytest.mark.parametrize("name", BASES)
def test_bases_of_other_shapes_than_the_flow(name, tmp_path):
    """A file that loads gives a flow that draws and scores, in the shapes that it says."""
    path = tmp_path / "flow"
    FlowDistribution(Affine(jnp.zeros(2)), BASES[name]).save(path)
    whole = path.read_bytes()
    num_shapes, num_arrays = (len(list(f(unpack(whole)[1]["fields"]["base_dist"]))) for f in (shapes_in, arrays_in))
    refused = 0
    for which, shape in itertools.product(range(num_shapes + num_arrays), SHAPES):
        kind, structure, arrays = unpack(whole)
        base = structure["fields"]["base_dist"]
        if which < num_shapes:
            list(shapes_in(base))[which]["tuple"] = list(shape)
        elif shape != (10**9,):
            node = list(arrays_in(base))[which - num_shapes]
            arrays[node["array"]] = np.ones(shape, arrays[node["array"]].dtype)
            node["checksum"] = checksum_of(arrays[node["array"]])
        path.write_bytes(pack(kind, structure, arrays))
        try:
            flow = FlowDistribution.load(path)
        except ValueError:
            refused += 1
            continue
        drawn = jax.eval_shape(partial(flow.sample, sample_shape=(5,)), jax.random.key(0))
        assert (drawn.shape, flow.event_shape) == ((5, *flow.batch_shape, 2), (2,))
        assert jax.eval_shape(flow.log_prob, drawn).shape == (5, *flow.batch_shape)
    assert refused > num_shapes
