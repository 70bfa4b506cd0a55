"""Transformers: monotone maps of one coordinate, whose parameters a conditioner gives."""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float

from numpyro_flows.arguments import require_numbers
from numpyro_flows.bijections.root import Values, invert_increasing, root_of_increasing

Params = Float[Array, "*shape num_params"]
"""Parameters of the map of each of such `Values`."""


class AbstractUnivariate(eqx.Module):
    """A monotone map `y = f(x; params)` of one coordinate; parameters of zero give the identity.

    Both methods work elementwise. `x` has any shape, `params` has that shape and a last axis of length `num_params`,
    and the log-derivative has the shape of `x`. Any scheme (coupling, autoregressive) can use any of these maps.

    Attributes:
        num_params: number of parameters for one coordinate.
        periodic: whether coordinates are angles; conditioners then see their cosine and sine.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import AbstractUnivariate, Elementwise
        >>> class Scaling(AbstractUnivariate):
        ...     num_params = 1
        ...     def transform_and_log_derivative(self, x, params):
        ...         return jnp.exp(params[..., 0]) * x, params[..., 0]
        ...     def inverse_and_log_derivative(self, y, params):
        ...         return jnp.exp(-params[..., 0]) * y, -params[..., 0]
        >>> Elementwise(2, Scaling()).transform(jnp.array([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """

    num_params: AbstractVar[int]
    periodic: ClassVar[bool] = False

    @abstractmethod
    def transform_and_log_derivative(self, x: Values, params: Params) -> tuple[Values, Values]: ...

    @abstractmethod
    def inverse_and_log_derivative(self, y: Values, params: Params) -> tuple[Values, Values]: ...

    def inverse(self, y: Values, params: Params) -> Values:
        """The inverse alone and unchecked, for use within iterations."""
        return self.inverse_and_log_derivative(y, params)[0]


class AbstractNumericalUnivariate(AbstractUnivariate):
    """A monotone map onto the reals whose inverse has no closed form: it uses bracketed roots with implicit gradients.

    Raises:
        RuntimeError: (from `eqx.error_if`, also within jit) if an inverse did not converge.
    """

    def inverse_and_log_derivative(self, y: Values, params: Params) -> tuple[Values, Values]:
        return invert_increasing(lambda x: self.transform_and_log_derivative(x, params), y, type(self).__name__)

    def inverse(self, y: Values, params: Params) -> Values:
        return root_of_increasing(lambda x: self.transform_and_log_derivative(x, params), y)


class ShiftUnivariate(AbstractUnivariate):
    """`y = x + t`; `params = (t,)`. Additive couplings use this map.

    Source: NICE, Dinh, Krueger, Bengio 2015, arXiv 1410.8516.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import ShiftUnivariate
        >>> y, _ = ShiftUnivariate().transform_and_log_derivative(jnp.array([1.0, 2.0]), jnp.array([[3.0], [4.0]]))
        >>> y.tolist()
        [4.0, 6.0]
    """

    num_params: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.num_params = 1

    def transform_and_log_derivative(self, x: Values, params: Params) -> tuple[Values, Values]:
        return x + params[..., 0], jnp.zeros_like(x)

    def inverse_and_log_derivative(self, y: Values, params: Params) -> tuple[Values, Values]:
        return y - params[..., 0], jnp.zeros_like(y)


class AffineUnivariate(AbstractUnivariate):
    """`y = exp(s) x + t` with a bounded log-scale `s = c tanh(r / c)`; `params = (r, t)`.

    The bound `c = max_log_scale` keeps a deep stack finite; the affine layer around the flow provides larger scales.
    Log-scales without a bound are the most common cause of NaN in trained RealNVPs.

    Raises:
        ValueError: if `max_log_scale` is not positive.

    Source: RealNVP, Dinh, Sohl-Dickstein, Bengio 2017, arXiv 1605.08803.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import AffineUnivariate
        >>> y, log_slope = AffineUnivariate().transform_and_log_derivative(jnp.array(1.0), jnp.array([0.0, 3.0]))
        >>> float(y), float(log_slope)
        (4.0, 0.0)
    """

    max_log_scale: float = eqx.field(static=True, default=4.0)
    num_params: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.num_params = 2

    def __check_init__(self):
        require_numbers("(0, inf)", max_log_scale=self.max_log_scale)

    def transform_and_log_derivative(self, x: Values, params: Params) -> tuple[Values, Values]:
        log_scale, shift = self._log_scale(params), params[..., 1]
        return jnp.exp(log_scale) * x + shift, log_scale

    def inverse_and_log_derivative(self, y: Values, params: Params) -> tuple[Values, Values]:
        log_scale, shift = self._log_scale(params), params[..., 1]
        return jnp.exp(-log_scale) * (y - shift), -log_scale

    def _log_scale(self, params: Params) -> Values:
        return self.max_log_scale * jnp.tanh(params[..., 0] / self.max_log_scale)
