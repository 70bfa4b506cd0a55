"""Functions compiled in the background, while Python traces the next one, and only once for data of equal shapes."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from numpyro_flows._jax import eval_jaxpr
from numpyro_flows.precision import full_precision
from numpyro_flows.training.devices import automatic, is_placed, mesh_of, put

# A posterior of everyday size trains in seconds. XLA's costliest passes would take some of these without gain. At
# level 1 LLVM aborts on some loops over broadcast loads ("Cannot select", jax 0.12).
OPTIMIZATION_LEVEL = {"xla_backend_optimization_level": 2}
NO_OPTIMIZATION = {"xla_backend_optimization_level": 0}  # for functions that run only a few times


@contextmanager
def compilers() -> Iterator[Executor]:
    """Threads for compilation; at the end, functions that are no longer needed are not waited for."""
    pool = ThreadPoolExecutor()
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Ahead:
    """`function`, traced at once for arguments like `args`, and compiled in the background until it is called.

    The arrays that it closes over, such as a model's data, become arguments of the compiled program. So a function with
    the same program, for other data of the same shapes, is compiled already.

    With `mesh` all its devices run the function. Without it, arrays that a user has placed on a mesh, closed over or
    among `args`, determine the devices. Such arrays keep their sharding. Results are replicated on all devices.
    """

    def __init__(
        self,
        pool: Executor,
        function: Callable,
        *args: Any,
        options: dict[str, Any] = OPTIMIZATION_LEVEL,
        mesh: Mesh | None = None,
    ):
        with full_precision():
            traced = jax.jit(function).trace(*args)
            jaxpr = traced.jaxpr

            def of_leaves(constants: list[Any], leaves: list[Any]) -> list[Any]:
                return eval_jaxpr(jaxpr.jaxpr, constants, *leaves)

            leaves, self._in_tree = jax.tree.flatten(args)
            self._mesh = mesh_of((jaxpr.consts, leaves)) if mesh is None else mesh
            if self._mesh is None:
                self._constants = jax.device_put(jaxpr.consts)
                lowered = jax.jit(of_leaves).lower(self._constants, leaves)
            else:
                everywhere = NamedSharding(automatic(self._mesh), PartitionSpec())
                placement = [[_placement(leaf, everywhere) for leaf in each] for each in (jaxpr.consts, leaves)]
                self._constants = [leaf if is_placed(leaf) else put(leaf, everywhere) for leaf in jaxpr.consts]
                compiled = jax.jit(of_leaves, in_shardings=tuple(placement), out_shardings=everywhere)
                lowered = compiled.lower(self._constants, leaves)
        self.jaxpr, self._out_tree = jaxpr, jax.tree.structure(traced.out_info)
        self._compiled = _PROGRAMS.compiled(pool, lowered, options, self._mesh)

    def __call__(self, *args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        if tree != self._in_tree:
            raise TypeError(f"expected arguments of the structure {self._in_tree}, got {tree}")
        leaves = [self._moved(leaf) for leaf in leaves]
        # the program has only leaves: structures have static fields that its text does not show
        return jax.tree.unflatten(self._out_tree, self._compiled.result()(self._constants, leaves))

    def wait(self) -> None:
        """Wait until the compilation is over."""
        self._compiled.result()

    def _moved(self, leaf: Any) -> Any:
        """An argument; one on other devices than the program's becomes an array of the host."""
        if not isinstance(leaf, jax.Array):
            return leaf
        elsewhere = is_placed(leaf) if self._mesh is None else leaf.sharding.device_set != set(self._mesh.devices.flat)
        return np.asarray(leaf) if elsewhere else leaf


def _placement(leaf: Any, everywhere: NamedSharding) -> NamedSharding:
    """The sharding of an input: that of the user, or replicated."""
    if not is_placed(leaf):
        return everywhere
    if leaf.sharding.device_set != everywhere.device_set:
        raise ValueError(
            f"expected all arrays on the devices {sorted(everywhere.device_set, key=str)}, got one on "
            f"{sorted(leaf.sharding.device_set, key=str)}: place the data on the mesh that you give as mesh="
        )
    return leaf.sharding


class Later:
    """`function`, compiled like `Ahead` when it is first called with arguments of a kind."""

    def __init__(self, function: Callable):
        self._function = function
        self._compiled: dict[Any, Ahead] = {}

    def __call__(self, *args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        if any(isinstance(leaf, Tracer) for leaf in leaves):  # within another compiled function
            return self._function(*args)
        kind = (tree, *((np.shape(leaf), jax.typeof(leaf).dtype) for leaf in leaves))
        if kind not in self._compiled:
            self._compiled[kind] = Ahead(_Here(), self._function, *args)
        return self._compiled[kind](*args)


class _Here(Executor):
    """Runs functions at once, in the calling thread."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class _Programs:
    """The last compiled programs, by their text."""

    def __init__(self, most: int):
        self._most = most
        self._kept: OrderedDict[bytes, jax.stages.Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def compiled(
        self, pool: Executor, lowered: jax.stages.Lowered, options: dict[str, Any], mesh: Mesh | None
    ) -> Future[jax.stages.Compiled]:
        """The compiled program, without waiting if it is kept."""
        text = lowered.as_text()
        if "callback" in text:  # into Python: the text has only an address of it
            return pool.submit(lowered.compile, options)
        where = f"{jax.default_backend()} {jax.config.jax_default_device}"
        where += "" if mesh is None else f" {mesh.devices.tolist()}"  # of which the text has only the number
        # arguments that it does not use are not in the text
        whole = f"{where} {sorted(options.items())} {lowered.args_info} {text}"
        key = hashlib.sha256(whole.encode()).digest()
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
        if kept is None:
            return pool.submit(self._compile, key, lowered, options)
        future = Future[jax.stages.Compiled]()
        future.set_result(kept)
        return future

    def forget(self) -> None:
        with self._lock:
            self._kept.clear()

    def _compile(self, key: bytes, lowered: jax.stages.Lowered, options: dict[str, Any]) -> jax.stages.Compiled:
        compiled = lowered.compile(options)
        with self._lock:
            self._kept[key] = compiled
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return compiled


_PROGRAMS = _Programs(most=24)  # about five models: a process may map 65,530 memory areas, a program up to 60


def forget_programs() -> None:
    """Drop all compiled programs, as `jax.clear_caches` does with JAX's own: the next fit compiles again."""
    _PROGRAMS.forget()


def prototype[T](make: Callable[..., T], *args: Any) -> T:
    """The result of `make`, with shapes in place of arrays."""
    try:
        with jax.checking_leaks():
            return eqx.filter_eval_shape(make, *args)
    except Exception as error:  # JAX has no narrower class for a leak
        if "Leaked" not in str(error):
            raise
        raise ValueError(
            "the flow expected a recipe that JAX can trace, got one that keeps arrays in a closure: make the "
            "bijection before, and give `lambda key, dim: bijection`"
        ) from error
