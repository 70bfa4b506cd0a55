"""Flow matching: fits a vector field by regression on the velocities of given paths, without an ODE solver."""

from abc import abstractmethod
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar
from scipy.optimize import linear_sum_assignment

from numpyro_flows.arguments import require_choice, require_instance, require_key, require_numbers
from numpyro_flows.bijections.sweeps import Vector
from numpyro_flows.continuous.flow import ContinuousFlow

Coupling = Literal["independent", "minibatch_ot"]
"""The pairing of base draws and data: arbitrary, or with the smallest total squared distance in a batch."""


class AbstractPath(eqx.Module):
    """A path from a draw `x0` of the base to a datum `x1`: `x_t = a(t) x1 + b(t) x0`, `t` from 0 to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.continuous import AbstractPath, FlowMatching
        >>> class QuarterCircle(AbstractPath):
        ...     def weights(self, t):
        ...         return jnp.sin(jnp.pi / 2 * t), jnp.cos(jnp.pi / 2 * t)
        >>> x, velocity = FlowMatching(QuarterCircle()).path(jnp.array(1.0), jnp.zeros(2), jnp.ones(2))
        >>> x.round(2).tolist()
        [1.0, 1.0]
    """

    @abstractmethod
    def weights(self, t: Scalar) -> tuple[Scalar, Scalar]:
        """`a(t)` and `b(t)`."""

    def __call__(self, t: Scalar, x0: Vector, x1: Vector) -> tuple[Vector, Vector]:
        """`x_t` and its velocity."""
        (a, b), (a_slope, b_slope) = jax.jvp(self.weights, (t,), (jnp.ones_like(t),))
        return a * x1 + b * x0, a_slope * x1 + b_slope * x0


class ConditionalOT(AbstractPath):
    """`x_t = t x1 + (1 - (1 - sigma_min) t) x0`: a straight path that ends in `N(x1, sigma_min^2)`, not in a point.

    Args:
        sigma_min: standard deviation at the end, on the scale of whitened data. It blurs the density by this amount,
            and keeps a network from overfitting to few points.

    Raises:
        ValueError: if `sigma_min` is not in [0, 1).

    Source: Lipman, Chen, Ben-Hamu, Nickel, Le 2023, arXiv 2210.02747.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.continuous import ConditionalOT
        >>> x, velocity = ConditionalOT(sigma_min=0.5)(jnp.array(0.5), jnp.array([4.0]), jnp.array([2.0]))
        >>> x.tolist(), velocity.tolist()
        ([4.0], [0.0])
    """

    sigma_min: float = eqx.field(static=True)

    def __init__(self, sigma_min: float = 0.03):
        require_numbers("[0, 1)", sigma_min=sigma_min)
        self.sigma_min = sigma_min

    def weights(self, t: Scalar) -> tuple[Scalar, Scalar]:
        return t, 1 - (1 - self.sigma_min) * t


class RectifiedFlow(AbstractPath):
    """`x_t = t x1 + (1 - t) x0`: a straight path to the point itself.

    Source: Liu, Gong, Liu 2023, arXiv 2209.03003.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.continuous import RectifiedFlow
        >>> x, velocity = RectifiedFlow()(jnp.array(0.5), jnp.array([0.0]), jnp.array([2.0]))
        >>> x.tolist(), velocity.tolist()
        ([1.0], [2.0])
    """

    def weights(self, t: Scalar) -> tuple[Scalar, Scalar]:
        return t, 1 - t


class VariancePreserving(AbstractPath):
    """`x_t = a x1 + sqrt(1 - a^2) x0` with `a = exp(-(B(1 - t)) / 2)`: the diffusion whose noise decreases with `t`.

    `B(s) = beta_min s + (beta_max - beta_min) s^2 / 2`. The fitted field is that of the probability-flow equation,
    whose likelihood is exact. The velocity is unbounded as the noise approaches 0, so the path ends earlier, at 0.999
    of the interval.

    Args:
        beta_min, beta_max: rates of the noise at the data and at the base, with `B(1)` large enough to forget the data.

    Raises:
        ValueError: if not `0 < beta_min <= beta_max`.

    Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole 2021, arXiv 2011.13456.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.continuous import VariancePreserving
        >>> a, b = VariancePreserving().weights(jnp.array(0.5))
        >>> round(float(a**2 + b**2), 2)
        1.0
    """

    beta_min: float = eqx.field(static=True)
    beta_max: float = eqx.field(static=True)

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        if not 0 < beta_min <= beta_max:
            raise ValueError(f"expected 0 < beta_min <= beta_max, got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def weights(self, t: Scalar) -> tuple[Scalar, Scalar]:
        s = 1 - _LAST_TIME * t
        noise = self.beta_min * s + (self.beta_max - self.beta_min) * s**2 / 2
        return jnp.exp(-noise / 2), jnp.sqrt(-jnp.expm1(-noise))


_LAST_TIME = 0.999
_CONDITION_COST = 100.0  # with a linear effect, base draws of a pair have mean c / 100: a KL of 5e-5 c^2


class FlowMatching(eqx.Module):
    """The loss `E |v(t, x_t) - dx_t/dt|^2`, whose minimiser is a field that carries the base to the data.

    Args:
        path: path from a draw of the base to a datum.
        coupling: "independent", or "minibatch_ot", whose paths cross less. With the latter, draws and densities of the
            flow take fewer evaluations of the field, but training takes longer, because of the assignments. It pairs
            draws and data of similar conditions, and resamples rows by their weights. If conditions have many
            coordinates, there are few similar pairs, and little is gained.

    Raises:
        ValueError: if `coupling` is unknown.

    Source: Lipman et al. 2023, arXiv 2210.02747; couplings: Tong et al. 2024, arXiv 2302.00482; Pooladian et al. 2023,
        arXiv 2304.14772; with conditions: Kerrigan, Migliorini, Smyth 2024, arXiv 2404.04240; Chemseddine, Hagemann,
        Steidl, Wald 2024, arXiv 2403.18705.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows import fit_density, flows
        >>> from numpyro_flows.continuous import FlowMatching
        >>> data = jax.random.normal(jax.random.key(0), (500, 2)) ** 3
        >>> flow = fit_density(
        ...     jax.random.key(1),
        ...     data,
        ...     flow=flows.ffjord,
        ...     objective=FlowMatching(coupling="minibatch_ot"),
        ...     num_steps=100,
        ...     progress_bar=False,
        ... )
        >>> flow.sample(jax.random.key(2), (5,)).shape
        (5, 2)
    """

    path: AbstractPath
    coupling: str = eqx.field(static=True)

    def __init__(self, path: AbstractPath | None = None, coupling: Coupling = "independent"):
        require_choice(get_args(Coupling), coupling=coupling)
        self.path = ConditionalOT() if path is None else path
        require_instance(AbstractPath, "continuous.ConditionalOT()", path=self.path)
        self.coupling = coupling

    def __call__(
        self,
        flow: ContinuousFlow,
        key: PRNGKeyArray,
        x1: Float[Array, "batch dim"],
        conditions: Float[Array, "batch cond_dim"] | None,
        weights: Float[Array, " batch"],
    ) -> Scalar:
        """The mean loss over a batch of data, with a draw of the base and a time for each, and over the coordinates.

        Conditions should have standard deviations near 1, as `fit_density` makes them.
        """
        require_key(key, "key")
        base_key, time_key = jax.random.split(key)
        x0 = jax.random.normal(base_key, x1.shape, x1.dtype)
        if self.coupling == "minibatch_ot":
            x0, x1, conditions, weights = self._paired(key, x0, x1, conditions, weights)
        # one time in each of as many intervals: less noise than with independent times
        batch = len(x1)
        times = (jnp.arange(batch) + jax.random.uniform(time_key, (batch,), x1.dtype)).astype(x1.dtype) / batch
        x, velocity = jax.vmap(self.path)(times, x0, x1)
        start, end = flow.interval
        fitted = jax.vmap(flow.field)(start + (end - start) * times, x, conditions) * (end - start)
        return jnp.mean(weights * jnp.mean((fitted - velocity) ** 2, axis=1))

    def _paired(
        self,
        key: PRNGKeyArray,
        x0: Float[Array, "batch dim"],
        x1: Float[Array, "batch dim"],
        conditions: Float[Array, "batch cond_dim"] | None,
        weights: Float[Array, " batch"],
    ) -> tuple[Array, Array, Array | None, Array]:
        """Draws of the base, data resampled by their weights, conditions of these, and equal weights.

        The marginals do not change. The base is normal for each condition, up to `_CONDITION_COST`. The data are
        weighted, exactly so over all batches, because the equal weights are the mean of the given ones.
        """
        rows = _resampled(jax.random.fold_in(key, 1), weights)
        x1, conditions = x1[rows], None if conditions is None else conditions[rows]
        x0 = _nearest(x0, x1, conditions)
        # A path ends in `a x1 + b x0`. The pair's `x0` would stretch the data there, not blur them: use other noise.
        a, b = self.path.weights(jnp.ones((), x1.dtype))
        noise = jax.random.normal(jax.random.fold_in(key, 2), x1.shape, x1.dtype)
        return x0, x1 + b / a * (noise - x0), conditions, jnp.full_like(weights, weights.mean())


def _resampled(key: PRNGKeyArray, weights: Float[Array, " batch"]) -> Int[Array, " batch"]:
    """Systematic resampling: as many rows, each as often as its weight says, to within one, in random order.

    The order must be random, because times increase along the batch.
    """
    offset_key, order_key = jax.random.split(key)
    batch, sums = len(weights), jnp.cumsum(weights)
    levels = (jnp.arange(batch) + jax.random.uniform(offset_key, dtype=weights.dtype)) / batch * sums[-1]
    rows = jnp.searchsorted(sums, levels, side="right")
    return jax.random.permutation(order_key, jnp.minimum(rows, batch - 1))


def _nearest(
    x0: Float[Array, "batch dim"],
    x1: Float[Array, "batch dim"],
    conditions: Float[Array, "batch cond_dim"] | None = None,
) -> Float[Array, "batch dim"]:
    """`x0` in the order that minimises the sum of squared distances to the rows of `x1`.

    With conditions, each draw of the base has its own condition, independent of it: that of the row with its number.
        The squared distance between the two conditions of a pair counts `_CONDITION_COST` times. So the draws paired
        with rows of one condition are nearly those that had it.
    """

    def assign(x0: np.ndarray, x1: np.ndarray) -> np.ndarray:
        x0, x1 = np.asarray(x0, np.float64), np.asarray(x1, np.float64)
        cost = 0.5 * (x0**2).sum(1) - x1 @ x0.T
        cost -= cost.min(1, keepdims=True)  # these two do not change the assignment, but shorten SciPy's search
        cost -= cost.min(0)
        return linear_sum_assignment(cost)[1].astype(np.int32)

    def joint(x: Array) -> Array:
        return x if conditions is None else jnp.concatenate([x, _CONDITION_COST**0.5 * conditions], axis=1)

    shape = jax.ShapeDtypeStruct((len(x0),), np.int32)
    return x0[jax.pure_callback(assign, shape, joint(x0), joint(x1), vmap_method="sequential")]
