"""A continuous flow in a few steps of average velocities: the result of distilling a flow with a solver."""

from typing import override

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

from numpyro_flows.arguments import require_counts
from numpyro_flows.bijections.base import AbstractShaped
from numpyro_flows.bijections.noise import AbstractEstimator
from numpyro_flows.bijections.sweeps import Vector
from numpyro_flows.continuous.fields import AbstractField
from numpyro_flows.continuous.flow import ContinuousFlow


class FewSteps(AbstractShaped, AbstractEstimator):
    """`x_{k+1} = x_k + h v_k(t_k + h/2, x_k)`: one step for each field, from base to target, and other steps back.

    A step costs one evaluation of its field, with all `dim` columns of its Jacobian, whose determinant is exact. So
    `inverse_and_log_det` gives a density that integrates to 1 if the steps back are one-to-one, and
    `transform_and_log_det` gives the exact density of its own draws. But the steps back are trained to undo the steps
    forward, and do so only nearly. So the two densities differ a little, and both are marked as estimates.

    At the start all fields are those of `flow`, and the steps are Euler's at the middle of each interval. `few_steps`
    trains them.

    Args:
        flow: the continuous flow.
        num_steps: number of steps in each direction.

    Raises:
        ValueError: if `num_steps` is below 1.

    Source: average velocities: MeanFlow, Geng, Deng, Bai, Kolter, He 2025, arXiv 2505.13447; distilled with
        log-determinants: F2D2, Ai, He, Gu, Salakhutdinov, Kolter, Boffi, Simchowitz 2025, arXiv 2512.02636, which
        learns these by a network of their own instead.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> from numpyro_flows.continuous import FewSteps
        >>> FewSteps(flows.ffjord(jax.random.key(0), 3), num_steps=4).transform(jax.numpy.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """

    forth: AbstractField
    back: AbstractField
    num_steps: int = eqx.field(static=True)
    interval: tuple[float, float] = eqx.field(static=True)

    def __init__(self, flow: ContinuousFlow, *, num_steps: int = 4):
        require_counts(num_steps=num_steps)
        repeated = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_steps, *leaf.shape)) if eqx.is_array(leaf) else leaf, flow.field
        )
        self.forth, self.back, self.num_steps, self.interval = repeated, repeated, num_steps, flow.interval
        self.shape, self.cond_shape = flow.shape, flow.cond_shape

    @property
    @override
    def estimate(self) -> str:
        return f"{self.num_steps} distilled steps, which are undone only nearly"

    def _transform(self, x: Vector, condition: Array | None) -> tuple[Array, Scalar]:
        return _through(self.forth, x, condition, self.interval, self.num_steps)

    def _inverse(self, y: Vector, condition: Array | None) -> tuple[Array, Scalar]:
        return _through(self.back, y, condition, (self.interval[1], self.interval[0]), self.num_steps)


def _through(
    fields: AbstractField, x: Vector, condition: Array | None, interval: tuple[float, float], num_steps: int
) -> tuple[Vector, Scalar]:
    start, end = interval
    width = (end - start) / num_steps
    times = start + width * (jnp.arange(num_steps, dtype=x.dtype) + 0.5)
    arrays, static = eqx.partition(fields, eqx.is_array)

    def step(state: tuple[Vector, Scalar], inputs: tuple[AbstractField, Scalar]) -> tuple[tuple[Vector, Scalar], None]:
        x, log_det = state
        field, t = eqx.combine(inputs[0], static), inputs[1]
        velocity, tangent = jax.linearize(lambda x: field(t, x, condition), x)
        jacobian = jnp.eye(x.size, dtype=x.dtype) + width * jax.vmap(tangent, out_axes=1)(
            jnp.eye(x.size, dtype=x.dtype)
        )
        return (x + width * velocity, log_det + jnp.linalg.slogdet(jacobian)[1]), None

    return jax.lax.scan(step, (x, jnp.zeros_like(x, shape=())), (arrays, times))[0]
