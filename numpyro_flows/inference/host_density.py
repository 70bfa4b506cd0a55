"""A model's density and its prior for algorithms that run on the host."""

from collections.abc import Callable
from concurrent.futures import Executor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from numpyro_flows.inference.blocks import in_blocks
from numpyro_flows.inference.exploration import Prior
from numpyro_flows.inference.target import Fitted, Target
from numpyro_flows.training.ahead import NO_OPTIMIZATION, Ahead
from numpyro_flows.training.devices import ONE_DEVICE, Devices
from numpyro_flows.training.seeds import Seeds, seed_key, threefry_key

_STAGES = ("gaussian", "mixture", "flow", "fallback")


class HostDensity:
    """A target's log density and gradient at any number of points, for algorithms in NumPy.

    Points are evaluated `batch` at a time, or `block` at a time without gradients, and the devices share them. The
    points are counted for the stage of a fit that `counted_for` names: in `gradients` those with a gradient, in
    `values_alone` the others. `check` is called before each evaluation, and may raise a KeyboardInterrupt.
    """

    def __init__(
        self,
        pool: Executor,
        target: Fitted,
        batch: int,
        block: int,
        devices: Devices = ONE_DEVICE,
        check: Callable[[], None] | None = None,
    ):
        self.dtype = np.dtype(jnp.result_type(float))
        self.counted_for = "gaussian"
        self.gradients: dict[str, int] = dict.fromkeys(_STAGES, 0)
        self.values_alone: dict[str, int] = dict.fromkeys(_STAGES, 0)
        self._batch, self._block, self._check = batch, block, check
        value, gradient = jax.vmap(target.log_density), jax.vmap(jax.value_and_grad(target.log_density))
        points = np.zeros((max(batch, block), target.dim), self.dtype)
        self._with_gradient = Ahead(pool, lambda x: gradient(devices.sharded(x)), points[:batch], mesh=devices.mesh)
        self._value = Ahead(pool, lambda x: value(devices.sharded(x)), points[:block], mesh=devices.mesh)

    def __call__(self, x: Float[np.ndarray, "points dim"]) -> tuple[np.ndarray, np.ndarray]:
        if not len(x):
            return np.zeros(0, self.dtype), np.zeros(x.shape, self.dtype)
        if self._check is not None:
            self._check()
        self.gradients[self.counted_for] += len(x)
        return in_blocks(self._with_gradient, x.astype(self.dtype), self._batch)

    def values(self, x: Float[np.ndarray, "points dim"]) -> Float[np.ndarray, " points"]:
        """Log densities alone."""
        if not len(x):
            return np.zeros(0, self.dtype)
        if self._check is not None:
            self._check()
        self.values_alone[self.counted_for] += len(x)
        return in_blocks(self._value, x.astype(self.dtype), self._block)

    def wait(self) -> None:
        """Wait until the compilation is over."""
        self._with_gradient.wait()


class HostPrior:
    """Draws of a target's prior with their log densities, on the host; none if no site has a prior to draw from."""

    def __init__(self, pool: Executor, target: Fitted, batch: int):
        self._batch = batch
        self._dim = target.dim
        self._draw = None
        if isinstance(target, Target) and target.has_prior():
            seeds = np.zeros((batch, 4), np.uint32)
            # by keys of XLA's generator, 4% of NumPyro's draws of a von Mises of concentration 20 were beyond 4 sds
            key_of = threefry_key if target.coordinates.periodic.any() else seed_key
            self._draw = Ahead(
                pool, jax.vmap(lambda seed: target.prior_draw(key_of(seed))), seeds, options=NO_OPTIMIZATION
            )

    def __call__(self, seeds: Seeds, num: int, purpose: str = "prior") -> Prior:
        """Draws by seeds of this name."""
        if self._draw is None:
            return Prior(np.zeros((0, self._dim)), np.zeros(0))
        rows = seeds.many(-(-num // self._batch) * self._batch, purpose).reshape(-1, self._batch, 4)
        blocks = [self._draw(block) for block in rows]
        return Prior(*(np.concatenate(leaves)[:num] for leaves in zip(*blocks)))
