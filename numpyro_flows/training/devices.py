"""The devices of a fit: one, or those of a mesh, which share the work along leading axes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from numpyro_flows.arguments import described
from numpyro_flows.training.watch import Watch


class Devices(NamedTuple):
    """The devices of a fit: those of `mesh`, which has one axis; where it is None, JAX's default device."""

    mesh: Mesh | None = None

    @classmethod
    def of(cls, mesh: Any) -> "Devices":
        """Those of a user's mesh.

        Raises:
            TypeError: where it is neither a mesh nor None.
            ValueError: where it has several axes.
        """
        if mesh is None:
            return cls()
        if not isinstance(mesh, Mesh):
            raise TypeError(f"mesh expected a jax.sharding.Mesh or None, got {described(mesh)}: {_A_MESH}")
        if len(mesh.axis_names) != 1:
            raise ValueError(f"mesh expected one axis, got {len(mesh.axis_names)}: {mesh.axis_names}. {_A_MESH}")
        return cls(automatic(mesh))

    @property
    def num(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def several_processes(self) -> bool:
        return self.mesh is not None and len({device.process_index for device in self.mesh.devices.flat}) > 1

    def watch(self, watch: Watch) -> Watch:
        """How a user looks at a fit: of several processes the first one shows the progress bar.

        Raises:
            ValueError: where several processes would write one checkpoint.
        """
        if not self.several_processes:
            return watch
        if watch.checkpoint is not None:
            raise ValueError(
                f"checkpoint expected None where mesh has devices of several processes, got {watch.checkpoint!r}: "
                "each of them would write the file"
            )
        return watch._replace(progress_bar=watch.progress_bar and jax.process_index() == 0)

    @property
    def rows(self) -> NamedSharding | None:
        """A leading axis over all devices."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names))

    def sharded(self, tree: PyTree) -> PyTree:
        """The same arrays, their leading axes over all devices: to be called within a compiled function.

        A length that is no multiple of the number of devices is filled up to one, and cut again: what follows stays
        sharded, as XLA fills up inside.
        """
        if self.rows is None:
            return tree
        rows = self.rows

        def shard(leaf: Any) -> Any:
            widths = [(0, -leaf.shape[0] % self.num), *[(0, 0)] * (leaf.ndim - 1)]
            return jax.lax.with_sharding_constraint(jnp.pad(leaf, widths), rows)[: leaf.shape[0]]

        return jax.tree.map(shard, tree)

    def placed(self, tree: PyTree) -> PyTree:
        """Arrays of the host on the devices, each of which has its part of the rows; filled up as by `sharded`."""
        if self.rows is None:
            return tree
        rows = self.rows

        def place(leaf: Any) -> jax.Array:
            widths = [(0, -leaf.shape[0] % self.num), *[(0, 0)] * (leaf.ndim - 1)]
            return put(np.pad(leaf, widths), rows)

        return jax.tree.map(place, tree)


ONE_DEVICE = Devices()
_A_MESH = 'write mesh=jax.make_mesh((jax.device_count(),), ("devices",))'


def automatic(mesh: Mesh) -> Mesh:
    """The same devices under the same names, where XLA decides how intermediate arrays are sharded."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def automatically_sharded(tree: PyTree) -> PyTree:
    """The same arrays; those that `jax.make_mesh`'s default, a mesh of explicit axes, is for have automatic ones.

    With explicit axes a model would have to say how each product is sharded, as of `x @ beta` in its gradient.
    """

    def place(leaf: Any) -> Any:
        if not is_placed(leaf):
            return leaf
        return jax.device_put(leaf, NamedSharding(automatic(leaf.sharding.mesh), leaf.sharding.spec))

    return tree if mesh_of(tree) is None else jax.tree.map(place, tree)


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, or a key, on devices of any process, which `jax.device_put` refuses."""
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh of the first array that its owner has placed on one; None where there is none."""
    for leaf in jax.tree.leaves(tree) if jax.device_count() > 1 else ():
        if is_placed(leaf):
            return leaf.sharding.mesh
    return None


def is_placed(leaf: Any) -> bool:
    """Whether this is an array on the devices of a mesh."""
    return isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)


def on_one_device(tree: PyTree) -> PyTree:
    """The arrays of a result, which every process has: on the default device of each."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)) if is_placed(leaf) else leaf, tree)
