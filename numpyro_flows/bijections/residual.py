"""Residual maps: each adds a network that is a contraction, so that the map can be inverted."""

from collections.abc import Callable, Sequence
from typing import override

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from numpyro_flows.arguments import require_counts, require_key, require_numbers
from numpyro_flows.bijections.base import AbstractShaped
from numpyro_flows.bijections.noise import AbstractEstimator, EventNoise
from numpyro_flows.networks import MLP

_MAX_STEPS = 1000  # for a fixed point; 350 are enough for double precision at the default contraction
_MAX_SILU_SLOPE = 1.1
_NUM_SQUARINGS = 5  # the bound on a spectral norm is too large by a factor of up to size^(1 / 2^6)
_NUM_CERTAIN = 8  # terms that are always computed, before the random cut-off

Layers = list[tuple[Float[Array, "_ _"], Float[Array, " _"]]]


class Residual(AbstractShaped, AbstractEstimator):
    """`y = x + g(x, condition)`, where `g` is an MLP whose Lipschitz constant in `x` is below 1.

    Each weight of `g` is divided by (a bound on) its spectral norm if that is too large. So for all parameters the
    constants of the layers multiply to `max_lipschitz`; the activation `silu(x) / 1.1` adds none. All coordinates move
    at once, by a smooth map without a triangular structure. The inverse is the fixed point of `x <- y - g(x)`, found to
    rounding, with implicit gradients. The map starts as the identity.

    Up to `exact_dim` coordinates `log |det dy/dx|` is exact, from the dense Jacobian. **Above, it is a random
    estimate** of the series `sum_k (-1)^(k+1) tr(J^k) / k` for `J = dg/dx`. It uses one Rademacher probe `v` and a
    random number of terms, divided by their probabilities. A term is followed by the next with probability
    `max_lipschitz`, so the variance is finite. The estimate and its gradients are unbiased for the log-determinant.

    The randomness comes from a stored key and the bits of `x`: an event always has the same estimate, and different
    events have independent noise. The two directions see an `x` that differs by rounding, so their estimates do not
    cancel. Raise `exact_dim` for exact values, at a cost of `dim` times that of `g`, and `dim^3`.

    Args:
        key: random key of `g` and of the estimates' noise.
        dim: number of coordinates.
        cond_dim: length of the condition, a further input of `g`'s first layer; None without one.
        hidden: widths of the hidden layers of `g`.
        max_lipschitz: bound on the Lipschitz constant of `g`, between 0 and 1.
        exact_dim: largest number of coordinates with an exact log-determinant.

    Raises:
        ValueError: if `dim` is below 1, or `max_lipschitz` is not between 0 and 1.
        RuntimeError: (from `eqx.error_if`, also within jit) if an inverse did not converge.

    Source: Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen 2019, arXiv 1811.00995; the estimate: Chen, Behrmann,
    Duvenaud, Jacobsen 2019, arXiv 1906.02735.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows.bijections import Residual
        >>> layer = Residual(jax.random.key(0), 3, hidden=(8,))
        >>> layer.transform(jax.numpy.array([1.0, 2.0, 3.0])).round(2).tolist()
        [1.0, 2.0, 3.0]
    """

    network: MLP
    noise: EventNoise
    max_lipschitz: float = eqx.field(static=True)
    exact_dim: int = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        dim: int,
        *,
        cond_dim: int | None = None,
        hidden: Sequence[int] = (32, 32),
        max_lipschitz: float = 0.9,
        exact_dim: int = 64,
    ):
        require_key(key, "key")
        self._set_dims(dim, cond_dim)
        require_numbers("(0, 1)", max_lipschitz=max_lipschitz)
        require_counts(0, exact_dim=exact_dim)
        noise_key, key = jax.random.split(key)
        self.network = MLP(key, dim + (cond_dim or 0), dim, hidden)
        self.noise = EventNoise(noise_key)
        self.max_lipschitz = max_lipschitz
        self.exact_dim = exact_dim

    @property
    @override
    def estimate(self) -> str:
        dim = self.shape[0]
        return (
            f"the series of Residual, exact up to {self.exact_dim} of {dim} coordinates" if dim > self.exact_dim else ""
        )

    def _transform(self, x: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        layers = self._layers(condition)
        if x.size > self.exact_dim:
            return x + _apply(layers, x), self._log_det_estimate(layers, x)

        def step(x: Array) -> tuple[Array, Array]:
            g = _apply(layers, x)
            return g, g

        jacobian, g = jax.jacfwd(step, has_aux=True)(x)
        return x + g, jnp.linalg.slogdet(jnp.eye(x.size, dtype=x.dtype) + jacobian)[1]

    def _inverse(self, y: Float[Array, " dim"], condition: Array | None) -> tuple[Array, Scalar]:
        layers = self._layers(condition)
        x = jax.lax.custom_root(
            lambda x: x + _apply(layers, x) - y,
            jax.lax.stop_gradient(y),
            lambda _, start: self._fixed_point(lambda x: y - _apply(layers, x), start),
            self._solve,
        )
        residual = jnp.abs(x + _apply(layers, x) - y)
        failed = residual > jnp.sqrt(jnp.finfo(y.dtype).eps) * (1.0 + jnp.abs(y).max())  # False for NaN
        x = eqx.error_if(x, failed, "the inverse of Residual did not converge: max_lipschitz is too near to 1")
        return x, -self._transform(x, condition)[1]

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        (y, log_det), vjp = jax.vjp(lambda x: self._transform(x, condition), x)
        right = score - vjp((jnp.zeros_like(y), jnp.ones_like(log_det)))[0]
        layers = self._layers(condition)
        _, step_vjp = jax.vjp(lambda x: _apply(layers, x), x)
        return y, log_det, self._solve(lambda s: s + step_vjp(s)[0], right)

    def _layers(self, condition: Array | None) -> Layers:
        """Divided weights, and biases; the condition, held fixed, has become a part of the first bias."""
        dim, num = self.shape[0], len(self.network.weights)
        first, *others = self.network.weights
        bias, *biases = self.network.biases
        if condition is not None:
            bias = bias + condition @ first[dim:]
        most = self.max_lipschitz ** (1 / num)
        weights = [w * jnp.minimum(1.0, most / spectral_norm_bound(w)) for w in (first[:dim], *others)]
        return list(zip(weights, (bias, *biases)))

    def _fixed_point(self, contraction: Callable[[Array], Array], start: Array) -> Array:
        """The fixed point, to rounding: iterates until a step is no longer shorter than the one before."""
        enough = 0.5 * (1 + self.max_lipschitz)

        def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
            *_, shrinks, num = state
            return shrinks & (num < _MAX_STEPS)

        def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            x, last, _, num = state
            new = contraction(x)
            length = jnp.linalg.norm(new - x)
            return new, length, length < enough * last, num + 1

        infinite = jnp.full_like(start, jnp.inf, shape=())
        return jax.lax.while_loop(
            unfinished, step, (start, infinite, jnp.ones_like(start, bool, shape=()), jnp.array(0))
        )[0]

    def _solve(self, matvec: Callable[[Array], Array], right: Array) -> Array:
        """`v` with `(I + J) v = right`, or its transpose, differentiable in both modes."""

        def solve(matvec: Callable[[Array], Array], right: Array) -> Array:
            return self._fixed_point(lambda v: right - (matvec(v) - v), right)

        return jax.lax.custom_linear_solve(matvec, right, solve, transpose_solve=solve)

    def _log_det_estimate(self, layers: Layers, x: Float[Array, " dim"]) -> Scalar:
        fixed_layers, fixed_x = jax.lax.stop_gradient((layers, x))
        probe_key, roulette_key = jax.random.split(self.noise.key(fixed_x))
        probe = jax.random.rademacher(probe_key, x.shape, x.dtype)
        go_on = self.max_lipschitz
        num_terms = _NUM_CERTAIN - 1 + jax.random.geometric(roulette_key, 1 - go_on, dtype=int)
        _, vjp = jax.vjp(lambda x: _apply(fixed_layers, x), fixed_x)

        def term(state: tuple[Array, ...]) -> tuple[Array, ...]:
            k, power, value, adjoint = state
            k, power = k + 1, -vjp(power)[0]  # (-J^T)^k v
            weight = go_on ** -jnp.maximum(k - _NUM_CERTAIN, 0).astype(x.dtype)
            return k, power, value - weight / k * (power @ probe), adjoint + weight * power

        start = jnp.array(0), probe, jnp.zeros_like(x, shape=()), probe
        _, _, value, adjoint = jax.lax.while_loop(lambda state: state[0] < num_terms, term, start)
        # the estimate of d log_det = tr((I + J)^-1 dJ): its gradient is needed, not its value
        surrogate = adjoint @ jax.jvp(lambda x: _apply(layers, x), (x,), (probe,))[1]
        return value + surrogate - jax.lax.stop_gradient(surrogate)


def spectral_norm_bound(weight: Float[Array, "m n"]) -> Scalar:
    """An upper bound on the largest singular value `s`: at most `min(m, n)^(1 / 64) s`, and rarely above `1.01 s`.

    The bound is `trace(A^32)^(1 / 64)` with `A = W^T W`, by five squarings. It costs as much as power iteration, but it
    is guaranteed and smooth.
    """
    scale = jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(weight).max()))  # keeps squares finite
    weight = weight / scale
    gram = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
    gram = gram + jnp.finfo(weight.dtype).eps * jnp.eye(len(gram), dtype=gram.dtype)  # zero has no logarithm
    log_norm = jnp.log(scale)
    for i in range(_NUM_SQUARINGS):
        trace = jnp.trace(gram)
        log_norm = log_norm + 0.5 ** (i + 1) * jnp.log(trace)
        gram = gram / trace
        gram = gram @ gram
    return jnp.exp(log_norm + 0.5 ** (_NUM_SQUARINGS + 1) * jnp.log(jnp.trace(gram)))


def _apply(layers: Layers, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
    *hidden, (last_weight, last_bias) = layers
    for weight, bias in hidden:
        x = jax.nn.silu(x @ weight + bias) / _MAX_SILU_SLOPE
    return x @ last_weight + last_bias
