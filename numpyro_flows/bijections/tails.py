"""Univariate maps that make tails heavier or lighter, independently on each side."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from numpyro_flows.arguments import require_numbers
from numpyro_flows.bijections.normal_tail import normal_tail
from numpyro_flows.bijections.root import Values
from numpyro_flows.bijections.univariate import AbstractUnivariate, Params

_MIN_INDEX, _START_INDEX = 1e-3, 0.1  # of a tail
_MAX_LOG = 40.0  # largest log of a power tail: |y| up to e^40 / lam
_NEAR = 0.7  # below this, the logarithm of a tail near one half would lose digits
_NEWTON_STEPS = 5


class SinhArcsinh(AbstractUnivariate):
    """`y = sinh(p(arcsinh(x)))` with `p(t) = a t + b (sqrt(t^2 + 1) - 1)`, whose slope changes from `l` to `r`.

    With `a = (r + l) / 2`, `b = (r - l) / 2` and positive powers `l`, `r`, in the tails `|y|` grows like `|x|^l` on the
    left and like `|x|^r` on the right. A power of 2 turns a Gaussian tail into the exponential one that a half-Cauchy
    scale has on the log scale. The map is analytic, and both directions have a closed form. `params` are `log l` and
    `log r`, bounded by `max_log_power` through a tanh.

    Raises:
        ValueError: if `max_log_power` is not positive.

    Source: Jones and Pewsey 2009, Biometrika 96(4), whose map has one power for both sides.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import SinhArcsinh
        >>> params = jnp.array([0.0, 0.5])  # heavier on the right
        >>> y, _ = SinhArcsinh().transform_and_log_derivative(jnp.array([-9.0, 9.0]), jnp.stack([params, params]))
        >>> bool(y[1] > -2 * y[0])
        True
    """

    max_log_power: float = eqx.field(static=True, default=1.1)
    num_params: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.num_params = 2

    def __check_init__(self):
        require_numbers("(0, inf)", max_log_power=self.max_log_power)

    def transform_and_log_derivative(self, x: Values, params: Params) -> tuple[Values, Values]:
        a, b = self._coefficients(params)
        t = jnp.arcsinh(x)
        root = jnp.sqrt(t**2 + 1.0)
        p = a * t + b * (root - 1.0)
        return jnp.sinh(p), _log_cosh(p) + jnp.log(a + b * t / root) - _log_cosh(t)

    def inverse_and_log_derivative(self, y: Values, params: Params) -> tuple[Values, Values]:
        a, b = self._coefficients(params)
        p = jnp.arcsinh(y)
        # p + b - a t = b sqrt(t^2 + 1) has the root t = (a q - b s) / c; where that cancels, another form of it
        q, c = p + b, a**2 - b**2
        s = jnp.sqrt(q**2 + c)
        cancels = b * q > 0
        t = jnp.where(cancels, p * (q + b) / jnp.where(cancels, a * q + b * s, 1.0), (a * q - b * s) / c)
        root = jnp.sqrt(t**2 + 1.0)
        return jnp.sinh(t), _log_cosh(t) - _log_cosh(p) - jnp.log(a + b * t / root)

    def _coefficients(self, params: Params) -> tuple[Array, Array]:
        powers = jnp.exp(self.max_log_power * jnp.tanh(params / self.max_log_power))
        left, right = powers[..., 0], powers[..., 1]
        return 0.5 * (right + left), 0.5 * (right - left)


def _log_cosh(x: Values) -> Values:
    return jnp.logaddexp(x, -x) - jnp.log(2.0)


class TailTransform(AbstractUnivariate):
    """`y = sign(x) (erfc(|x| / sqrt(2))^-lam - 1) / lam`: turns a Gaussian tail into a power tail of index `lam`.

    For a standard Gaussian `x`, `P(y > t) = (1 + lam t)^(-1 / lam) / 2`: a generalized Pareto tail. `1 / lam`
    corresponds to the degrees of freedom of a Student's t; `lam` of 0 would give an exponential tail. Each side has its
    own `lam`, between 0.001 and `max_index`. `params` are `lam` on the left and on the right before a sigmoid, and
    zeros give 0.1 on both sides.

    **The map is not the identity for zero parameters**: the slope is `sqrt(2 / pi)` at 0 and grows from there; use an
    affine map next to it. It is C1, and its second derivative jumps at 0: prefer `SinhArcsinh` under Hamiltonian
    samplers.

    With `H = -log erfc(|x| / sqrt(2))` the power is `exp(lam H)`. Above `lam H = 40`, where `|y|` exceeds 1e17, the map
    continues as its tangent in `H`, so that single precision stays finite for every `x`.

    Args:
        max_index: largest `lam`; moments of order `1 / max_index` and more may then be infinite.

    Raises:
        ValueError: if `max_index` is not above 0.1.

    Source: tail transform flows, Hickling, Prangle 2025, arXiv 2406.16971.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import TailTransform
        >>> params = jnp.array([0.0, 2.0])  # heavier on the right
        >>> y, _ = TailTransform().transform_and_log_derivative(jnp.array([-9.0, 9.0]), jnp.stack([params, params]))
        >>> bool(y[1] > -2 * y[0])
        True
    """

    max_index: float = eqx.field(static=True, default=2.0)
    num_params: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.num_params = 2

    def __check_init__(self):
        require_numbers(f"({_START_INDEX}, inf)", max_index=self.max_index)

    def transform_and_log_derivative(self, x: Values, params: Params) -> tuple[Values, Values]:
        left = x < 0
        index = self._index(left, params)
        hazard, log_rate = _hazard(jnp.where(left, -x, x))
        log_power = jnp.minimum(index * hazard, _MAX_LOG)
        y = (jnp.expm1(log_power) + jnp.exp(log_power) * (index * hazard - log_power)) / index
        return jnp.where(left, -y, y), log_power + log_rate

    def inverse_and_log_derivative(self, y: Values, params: Params) -> tuple[Values, Values]:
        left = y < 0
        index = self._index(left, params)
        power = index * jnp.where(left, -y, y)
        most = math.expm1(_MAX_LOG)
        log_power = jnp.log1p(jnp.minimum(power, most))
        x = _at_hazard((log_power + jnp.maximum(power - most, 0.0) * math.exp(-_MAX_LOG)) / index)
        return jnp.where(left, -x, x), -log_power - _hazard(x)[1]

    def _index(self, left: Array, params: Params) -> Array:
        most = self.max_index - _MIN_INDEX
        start = (_START_INDEX - _MIN_INDEX) / most
        raw = jnp.where(left, params[..., 0], params[..., 1])
        return _MIN_INDEX + most * jax.nn.sigmoid(raw + math.log(start / (1 - start)))


def _hazard(x: Values) -> tuple[Array, Array]:
    """`H = -log erfc(x / sqrt(2))` and `log dH/dx`, for `x >= 0`."""
    log_tail, log_rate, _ = normal_tail(x)
    near = x < _NEAR
    from_erf = -jnp.log1p(-jax.lax.erf(jnp.where(near, x, 0.0) * math.sqrt(0.5)))
    return jnp.where(near, from_erf, -log_tail - math.log(2)), log_rate


@jax.custom_jvp
def _at_hazard(hazard: Values) -> Array:
    """The inverse of `_hazard`, by Newton's method from above: `H` is convex, so no step overshoots."""

    def step(_, x: Array) -> Array:
        value, log_rate = _hazard(x)
        return x - (value - hazard) * jnp.exp(-log_rate)

    start = jnp.minimum(jnp.sqrt(2 * hazard), math.sqrt(math.pi / 2) * hazard)
    return jax.lax.fori_loop(0, _NEWTON_STEPS, step, start)


@_at_hazard.defjvp
def _at_hazard_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    x = _at_hazard(*primals)
    return x, tangents[0] * jnp.exp(-_hazard(x)[1])
