"""Equations in coordinates that depend on each other in only one order, solved for all coordinates at once.

A map whose coordinate `i` depends on those before it can be inverted one coordinate after the other. The alternative is
to sweep over all of them at once, from any start. It is exact after as many sweeps as the longest chain of dependence,
and within rounding after far fewer. Source: Song, Meng, Liao, Ermon 2021, arXiv 2002.03629.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BY_ROUNDING = 4  # multiples of eps that count as equal

Vector = Float[Array, " dim"]


def fixed_point(function: Callable[[Vector], Vector], start: Vector, depth: int) -> Vector:
    """The solution of `x = function(x)`, if `depth` sweeps are exact from any start; its gradients are implicit."""
    return jax.lax.custom_root(
        lambda x: x - function(x),
        jax.lax.stop_gradient(start),
        lambda _, x: _sweep(function, x, depth),
        lambda linear, b: solve_triangular_by_sweeps(linear, jnp.ones_like(b), b, depth),
    )


def solve_triangular_by_sweeps(matvec: Callable[[Vector], Vector], diagonal: Vector, b: Vector, depth: int) -> Vector:
    """`v` with `A v = b`, where `A = matvec` is triangular in some order of coordinates and has this diagonal."""

    def solve(matvec: Callable[[Vector], Vector], b: Vector) -> Vector:
        return _sweep(lambda v: v + (b - matvec(v)) / diagonal, b / diagonal, depth)

    return jax.lax.custom_linear_solve(matvec, b, solve, transpose_solve=solve)


def _sweep(function: Callable[[Vector], Vector], x: Vector, depth: int) -> Vector:
    eps = jnp.finfo(x.dtype).eps

    def moving(state):
        _, change, num = state
        return change & (num < depth)

    def step(state):
        x, _, num = state
        new = function(x)
        # later coordinates may diverge before their turn: zero times infinity would spoil those before them
        new = jnp.where(jnp.isfinite(new), new, 0.0)
        return new, jnp.any(jnp.abs(new - x) > _BY_ROUNDING * eps * (0.01 + jnp.abs(new))), num + 1

    return jax.lax.while_loop(moving, step, (x, jnp.ones_like(x, bool, shape=()), 0))[0]
