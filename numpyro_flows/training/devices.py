"""The devices of a fit: one device, or all devices of a mesh, which split the leading axes of arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from numpyro_flows.arguments import described
from numpyro_flows.training.watch import Watch


class Devices(NamedTuple):
    """The devices of `mesh`, which has one axis; JAX's default device where it is None."""

    mesh: Mesh | None = None

    @classmethod
    def of(cls, mesh: Any) -> "Devices":
        """The devices of a user's mesh.

        Raises:
            TypeError: if `mesh` is neither a mesh nor None.
            ValueError: if it has several axes.
        """
        if mesh is None:
            return cls()
        if not isinstance(mesh, Mesh):
            raise TypeError(f"mesh expected a jax.sharding.Mesh or None, got {described(mesh)}: {_A_MESH}")
        if len(mesh.axis_names) != 1:
            raise ValueError(f"mesh expected one axis, got {len(mesh.axis_names)}, {mesh.axis_names}: {_A_MESH}")
        return cls(automatic(mesh))

    @property
    def num(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def several_processes(self) -> bool:
        return self.mesh is not None and len({device.process_index for device in self.mesh.devices.flat}) > 1

    def watched(self, watch: Watch) -> Watch:
        """The watch of a fit on these devices; with several processes only the first shows the progress bar.

        Raises:
            ValueError: if several processes would write one checkpoint.
        """
        if not self.several_processes:
            return watch
        if watch.checkpoint is not None:
            raise ValueError(
                f"checkpoint expected None for a fit by several processes, got {watch.checkpoint!r}: each process "
                "would write this file. Leave checkpoint out"
            )
        return watch._replace(progress_bar=watch.progress_bar and jax.process_index() == 0)

    def sharded(self, tree: PyTree) -> PyTree:
        """The same arrays with their leading axes split; call it inside a compiled function.

        A length that is not a multiple of `num` is padded to one and cut again. XLA then also pads the arrays computed
        from it.
        """
        return tree if self.mesh is None else jax.tree.map(self._sharded, tree)

    def placed(self, tree: PyTree) -> PyTree:
        """Arrays of the host on the devices, leading axes split; zeros pad a length to a multiple of `num`."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda leaf: put(np.pad(leaf, self._padding(leaf)), self._by_rows()), tree)

    def _sharded(self, leaf: Any) -> jax.Array:
        padded = jnp.pad(leaf, self._padding(leaf))
        return jax.lax.with_sharding_constraint(padded, self._by_rows())[: leaf.shape[0]]

    def _padding(self, leaf: Any) -> list[tuple[int, int]]:
        return [(0, -leaf.shape[0] % self.num), *[(0, 0)] * (leaf.ndim - 1)]

    def _by_rows(self) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names))


ONE_DEVICE = Devices()
_A_MESH = 'write mesh=jax.make_mesh((jax.device_count(),), ("devices",))'


def automatic(mesh: Mesh) -> Mesh:
    """The same devices and names with automatic axes: XLA decides how intermediate arrays are sharded."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def automatically_sharded(tree: PyTree) -> PyTree:
    """The same arrays, placed on automatic meshes.

    `jax.make_mesh` makes explicit axes by default. With them a model would have to name the sharding of its products:
    the gradient of `x @ slopes` raises an error.
    """

    def place(leaf: Any) -> Any:
        if not is_placed(leaf):
            return leaf
        return jax.device_put(leaf, NamedSharding(automatic(leaf.sharding.mesh), leaf.sharding.spec))

    return tree if mesh_of(tree) is None else jax.tree.map(place, tree)


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array or a key that every process has, on devices of all processes, which `jax.device_put` refuses."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh of the first array that a user has placed on one; None if there is no such array."""
    for leaf in jax.tree.leaves(tree) if jax.device_count() > 1 else ():
        if is_placed(leaf):
            return leaf.sharding.mesh
    return None


def is_placed(leaf: Any) -> bool:
    """Whether a value is an array on the devices of a mesh."""
    return isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)


def on_one_device(tree: PyTree) -> PyTree:
    """Arrays that all devices have, on the default device, so that every process has its own copy."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)) if is_placed(leaf) else leaf, tree)
