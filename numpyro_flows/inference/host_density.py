"""A model's density and its prior for algorithms that run on the host."""

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
from numpyro_flows.training.seeds import Seeds, seed_key


class HostDensity:
    """A target's log density and gradient at any number of points, for algorithms in NumPy; it counts the points.

    They are evaluated `batch` at a time, each device its part of them.
    """

    def __init__(self, pool: Executor, target: Fitted, batch: int, devices: Devices = ONE_DEVICE):
        self.dtype = np.dtype(jnp.result_type(float))
        self.num_evaluations = 0
        self._batch = batch
        evaluate = jax.vmap(jax.value_and_grad(target.log_density))
        points = np.zeros((batch, target.dim), self.dtype)
        self._evaluate = Ahead(pool, lambda x: evaluate(devices.sharded(x)), points, mesh=devices.mesh)

    def __call__(self, x: Float[np.ndarray, "points dim"]) -> tuple[np.ndarray, np.ndarray]:
        if not len(x):
            return np.zeros(0, self.dtype), np.zeros(x.shape, self.dtype)
        self.num_evaluations += len(x)
        return in_blocks(self._evaluate, x.astype(self.dtype), self._batch)

    def wait(self) -> None:
        """Until the compilation is over."""
        self._evaluate.wait()


class HostPrior:
    """Draws of a target's prior with their log densities, on the host; none where no site's prior can be drawn from."""

    def __init__(self, pool: Executor, target: Fitted, batch: int):
        self._batch = batch
        self._dim = target.dim
        self._draw = None
        if isinstance(target, Target) and target.has_prior():
            seeds = np.zeros((batch, 4), np.uint32)
            self._draw = Ahead(
                pool, jax.vmap(lambda seed: target.prior_draw(seed_key(seed))), seeds, options=NO_OPTIMIZATION
            )

    def __call__(self, seeds: Seeds, num: int, purpose: str = "prior") -> Prior:
        """Draws by seeds of this name."""
        if self._draw is None:
            return Prior(np.zeros((0, self._dim)), np.zeros(0))
        rows = seeds.many(-(-num // self._batch) * self._batch, purpose).reshape(-1, self._batch, 4)
        blocks = [self._draw(block) for block in rows]
        return Prior(*(np.concatenate(leaves)[:num] for leaves in zip(*blocks)))
