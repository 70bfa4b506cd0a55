"""Roots of increasing functions: the inverse of a map without a closed form."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_MAX_DOUBLINGS = 130  # of the bracket, beyond the largest number of single precision
_MAX_STEPS = 200  # bisection alone needs 150 in such a bracket
_BY_ROUNDING = 4  # multiples of eps that count as equal

Values = Float[Array, "*shape"]
"""Numbers of any shape, each of which is mapped by itself."""

Increasing = Callable[[Array], tuple[Array, Array]]
"""`x -> (f(x), log f'(x))`, elementwise."""


def invert_increasing(function: Increasing, y: Values, name: str) -> tuple[Values, Values]:
    """`x` with `f(x) = y` and `log dx/dy`, elementwise, for an increasing function onto the reals.

    The arguments are those of `root_of_increasing`, and the result is checked.

    Raises:
        RuntimeError: (from `eqx.error_if`, also within jit) if no bracket held the root, or the steps did not suffice.
    """
    x, found = _root(function, y)
    failed = ((found == 0) | jnp.isinf(x)) & jnp.isfinite(y)
    x = eqx.error_if(x, failed, f"the numerical inverse of {name} did not converge")
    return x, -function(x)[1]


def root_of_increasing(function: Increasing, y: Values) -> Values:
    """`x` with `f(x) = y`, elementwise, for an increasing function onto the reals; nothing is checked.

    A bracket around `y` doubles until it holds the root. Then Newton's method runs, with bisection if a step leaves the
    bracket or does not halve the residual. The implicit function theorem gives gradients of any order, in `y` and in
    all variables that `function`, which is `x -> (f(x), log f'(x))`, closes over. NaN gives NaN.
    """
    return _root(function, y)[0]


def _root(function: Increasing, y: Array) -> tuple[Array, Array]:
    """The root, and 1 where it was found, 0 elsewhere."""
    return jax.lax.custom_root(
        lambda x: function(x)[0] - y,
        jax.lax.stop_gradient(y),
        lambda _, guess: _solve(function, y, guess),
        lambda linear, b: b / linear(jnp.ones_like(b)),
        has_aux=True,
    )


def _solve(function: Increasing, y: Array, guess: Array) -> tuple[Array, Array]:
    eps = jnp.finfo(y.dtype).eps

    def too_narrow(lower, upper):
        return function(lower)[0] > y, function(upper)[0] < y

    def unbracketed(state):
        lower, upper, _, num = state
        below, above = too_narrow(lower, upper)
        return jnp.any(below | above) & (num < _MAX_DOUBLINGS)

    def widen(state):
        lower, upper, width, num = state
        below, above = too_narrow(lower, upper)
        # outward only: if an end moved inward, rounding near the root could make the bracket oscillate forever
        lower, upper = jnp.where(below, lower - width, lower), jnp.where(above, upper + width, upper)
        return lower, upper, 2 * width, num + 1

    start = guess - 1.0, guess + 1.0, jnp.ones((), y.dtype), 0
    lower, upper, _, num_doublings = jax.lax.while_loop(unbracketed, widen, start)
    below, above = too_narrow(lower, upper)
    bracketed = (num_doublings < _MAX_DOUBLINGS) | ~(below | above)

    def unfinished(state):
        *_, done, num = state
        return ~jnp.all(done) & (num < _MAX_STEPS)

    def step(state):
        x, lower, upper, last, done, num = state
        value, log_derivative = function(x)
        residual = value - y
        lower, upper = jnp.where(residual <= 0, x, lower), jnp.where(residual >= 0, x, upper)
        newton = x - residual * jnp.exp(-log_derivative)
        trusted = (newton > lower) & (newton < upper) & (jnp.abs(residual) <= 0.5 * last)
        new = jnp.where(trusted, newton, 0.5 * (lower + upper))
        exact = jnp.abs(residual) <= _BY_ROUNDING * eps * (0.01 + jnp.abs(y))
        still = jnp.abs(new - x) <= _BY_ROUNDING * eps * (0.01 + jnp.abs(x))
        x = jnp.where(done | exact, x, new)
        return x, lower, upper, jnp.abs(residual), done | exact | still | jnp.isnan(residual), num + 1

    inside = jnp.clip(guess, lower, upper)
    start = inside, lower, upper, jnp.full_like(y, jnp.inf), jnp.isnan(y), 0
    x, *_, done, _ = jax.lax.while_loop(unfinished, step, start)
    return x, (done & bracketed).astype(y.dtype)
