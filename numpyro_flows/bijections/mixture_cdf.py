"""A univariate map from a mixture to a normal score, by the mixture's distribution function."""

import math
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from scipy.special import ndtri

from numpyro_flows.arguments import require_choice, require_counts
from numpyro_flows.bijections.normal_tail import normal_tail, normal_tail_inverse
from numpyro_flows.bijections.root import Values, invert_increasing, root_of_increasing
from numpyro_flows.bijections.univariate import AbstractUnivariate, Params

Kind = Literal["normal", "logistic"]
"""The distribution of a component."""

_SPREAD = 0.6  # spread of the locations for zero parameters, in normal scores
_MAX_LOG_SCALE = 7.0
_A = math.sqrt(2 / math.pi)


class MixtureCDF(AbstractUnivariate):
    """`y = Phi^-1(sum_k w_k F((x - m_k) / s_k))` with the distribution function `F` of a normal or logistic variable.

    The map transforms a variable with the mixture's density into a standard normal one, in closed form; the inverse is
    numerical. It is analytic and onto the reals. The smaller of the two tails is computed, in logarithms, so nothing
    saturates. The log-derivative is a difference of log-hazards, which are small where log-densities are large. The
    tails are linear for normal components, and grow like a square root for logistic ones.

    `params` are the weights before their softmax, the locations and the log-scales. Equal components would stay equal
    under training, so zero parameters give locations that are spread over normal quantiles. The map is then near the
    identity, but not equal to it. A tanh bounds the scales to 0.0008 to 1,000: data should be standardised.

    Args:
        num_components: number of components of the mixture.
        kind: distribution of a component, "normal" or "logistic".

    Raises:
        ValueError: if `num_components` is below 1, or `kind` is unknown.
        RuntimeError: (from `eqx.error_if`) if an inverse did not converge.

    Source: Flow++, Ho, Chen, Srinivas, Duan, Abbeel 2019, arXiv 1902.00275; Gaussianization flows, Meng, Song, Song,
        Ermon 2020, arXiv 2003.01941.

    Example:
        >>> import jax.numpy as jnp  # doctest: +SLOW
        >>> univariate = MixtureCDF(num_components=2)
        >>> params = univariate.params_of(jnp.array([0.5, 0.5]), jnp.array([-2.0, 2.0]), jnp.array([1.0, 1.0]))
        >>> y, _ = univariate.transform_and_log_derivative(jnp.array(1e3), params)
        >>> float(y.round(2))
        998.0
    """

    num_components: int = eqx.field(static=True, default=8)
    kind: Kind = eqx.field(static=True, default="normal")
    num_params: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.__check_init__()
        self.num_params = 3 * self.num_components

    def __check_init__(self):  # also checks objects loaded from a file
        require_counts(num_components=self.num_components)
        require_choice(get_args(Kind), kind=self.kind)

    def transform_and_log_derivative(self, x: Values, params: Params) -> tuple[Values, Values]:
        in_lower, log_tail, log_rate = self._smaller_tail(x, params)
        score = normal_tail_inverse(log_tail)
        return jnp.where(in_lower, -score, score), log_rate - normal_tail(score)[1]

    def inverse_and_log_derivative(self, y: Values, params: Params) -> tuple[Values, Values]:
        height, log_slope = _height_of_score(y)
        x, log_derivative = invert_increasing(lambda x: self._height(x, params), height, type(self).__name__)
        return x, log_derivative + log_slope

    def inverse(self, y: Values, params: Params) -> Values:
        return root_of_increasing(lambda x: self._height(x, params), _height_of_score(y)[0])

    def _height(self, x: Values, params: Params) -> tuple[Values, Values]:
        """A function of the score that is nearly linear in it, and cheap."""
        in_lower, log_tail, log_rate = self._smaller_tail(x, params)
        size, log_slope = _height_of_tail(log_tail)
        return jnp.where(in_lower, -size, size), log_rate + log_slope

    def _smaller_tail(self, x: Values, params: Params) -> tuple[Array, Array, Array]:
        """Whether it is the lower tail; its logarithm; and the logarithm of its hazard."""
        weights, locs, log_scales = jnp.split(params, 3, axis=-1)
        start_loc, start_log_scale = self._start()
        log_weight = jax.nn.log_softmax(weights, axis=-1)
        loc = locs + jnp.asarray(np.broadcast_to(start_loc, locs.shape), params.dtype)
        log_scale = start_log_scale + _MAX_LOG_SCALE * jnp.tanh(log_scales / _MAX_LOG_SCALE)
        t = (x[..., None] - loc) * jnp.exp(-log_scale)

        left = t < 0
        distance = jnp.where(left, -t, t)
        log_near, log_hazard = self._tail(distance)  # of the tail that does not hold the component's centre
        near = jnp.exp(log_near)
        log_beyond = jnp.log1p(-near)  # of the other tail
        upper = jnp.sum(jnp.exp(log_weight) * jnp.where(left, 1.0 - near, near), axis=-1, keepdims=True)
        in_lower = upper > 0.5
        holds_centre = left ^ in_lower
        log_tail = log_weight + jnp.where(holds_centre, log_beyond, log_near)
        log_rate = jnp.where(holds_centre, log_near + log_hazard - log_beyond, log_hazard) - log_scale

        log_hazard = jax.nn.logsumexp(jax.nn.log_softmax(log_tail, axis=-1) + log_rate, axis=-1)
        return in_lower[..., 0], jax.nn.logsumexp(log_tail, axis=-1), log_hazard

    def params_of(
        self, weights: Float[ArrayLike, "*s k"], locs: Float[ArrayLike, "*s k"], scales: Float[ArrayLike, "*s k"]
    ) -> Float[Array, "*s num_params"]:
        """The parameters of a given mixture.

        Args:
            weights: positive weights, which are scaled to sum to 1.
            locs: locations.
            scales: scales of the components, between the bounds of the class.

        Raises:
            ValueError: if a shape does not end in `num_components`, a weight is not positive, or a scale is out of
                bounds.
        """
        weights, locs, scales = (np.asarray(a, dtype=float) for a in (weights, locs, scales))
        shape = np.broadcast_shapes(weights.shape, locs.shape, scales.shape)
        if shape[-1:] != (self.num_components,):
            raise ValueError(f"expected arrays of {self.num_components} components, got {shape}")
        start_loc, start_log_scale = self._start()
        share = (np.log(np.where(scales > 0, scales, np.inf)) - start_log_scale) / _MAX_LOG_SCALE
        if not ((weights > 0).all() and (np.abs(share) < 1).all()):
            raise ValueError(
                f"expected weights > 0 and scales within exp(+-{_MAX_LOG_SCALE}) of {math.exp(start_log_scale):.3g}, "
                f"got weights from {weights.min():.3g} and scales of {scales.min():.3g} to {scales.max():.3g}"
            )
        parts = np.log(weights), locs - start_loc, _MAX_LOG_SCALE * np.arctanh(share)
        return jnp.asarray(np.concatenate([np.broadcast_to(part, shape) for part in parts], axis=-1), float)

    def _start(self) -> tuple[Float[np.ndarray, " k"], float]:
        """The locations and the log-scale of zero parameters: a mixture of variance 1."""
        loc = _SPREAD * ndtri((np.arange(self.num_components) + 0.5) / self.num_components)
        unit = 1.0 if self.kind == "normal" else math.pi / math.sqrt(3)  # standard deviation of `F`
        return loc, 0.5 * math.log(1 - np.mean(loc**2)) - math.log(unit)

    def _tail(self, t: Values) -> tuple[Array, Array]:
        """Logarithms of `1 - F(t)` and of its hazard."""
        if self.kind == "normal":
            return normal_tail(t)[:2]
        return jax.nn.log_sigmoid(-t), jax.nn.log_sigmoid(t)


def _height_of_tail(log_tail: Values) -> tuple[Array, Array]:
    """`sqrt(a^2 + 2 H) - a` with `H = -log(2 tail)`, and the log of its derivative in `H`.

    With `a = sqrt(2 / pi)` it has the slope of the normal score at the centre, and grows like the score in the tails.
    """
    squared = _A**2 - 2 * (log_tail + math.log(2.0))
    return jnp.sqrt(squared) - _A, -0.5 * jnp.log(squared)


def _height_of_score(y: Values) -> tuple[Array, Array]:
    """What `_height_of_tail` gives for the tail beyond a score, with its sign, and the log of its derivative."""
    left = y < 0
    log_tail, log_hazard, _ = normal_tail(jnp.where(left, -y, y))
    size, log_slope = _height_of_tail(log_tail)
    return jnp.where(left, -size, size), log_hazard + log_slope
