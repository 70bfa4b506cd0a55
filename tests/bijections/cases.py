"""The table of bijections that the laws are tried on: a new family adds its constructors here."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from numpyro_flows import flows
from numpyro_flows.bijections import (
    AbstractBijection,
    Affine,
    AffineUnivariate,
    Chain,
    Coupling,
    Elementwise,
    Permutation,
    RationalQuadraticSpline,
    Scan,
    SinhArcsinh,
    TriangularAffine,
)

COND_DIM = 2
_KEY = jax.random.PRNGKey(0)  # of the raw kind, which is the same in single and double precision


def _triangular(dim: int) -> TriangularAffine:
    return TriangularAffine(jnp.zeros(dim), 1.5 * jnp.eye(dim))


def _layer(key) -> Chain:
    return Chain([_triangular(3), Coupling(key, 3, AffineUnivariate()), Permutation([2, 0, 1])])


# Layers and flows start as the identity, the other cases need not.
LAYERS: dict[str, Callable[[], AbstractBijection]] = {
    "coupling affine": lambda: Coupling(_KEY, 3, AffineUnivariate()),
    "coupling affine conditional": lambda: Coupling(_KEY, 3, AffineUnivariate(), cond_dim=COND_DIM),
    "coupling tails": lambda: Coupling(_KEY, 3, SinhArcsinh()),
    "elementwise tails": lambda: Elementwise(3, SinhArcsinh()),
    "coupling spline": lambda: Coupling(_KEY, 3, RationalQuadraticSpline()),
    "coupling spline conditional": lambda: Coupling(_KEY, 3, RationalQuadraticSpline(), cond_dim=COND_DIM),
}
FLOWS: dict[str, Callable[[], AbstractBijection]] = {
    f"{recipe.__name__} {dim}d{' conditional' if cond_dim else ''}": (
        lambda recipe=recipe, dim=dim, cond_dim=cond_dim: recipe(_KEY, dim, cond_dim=cond_dim)
    )
    for recipe in (flows.realnvp, flows.nsf_coupling)
    for dim, cond_dim in ((1, None), (1, COND_DIM), (2, None), (3, COND_DIM), (5, None))
}
FLOWS["realnvp with tails 3d conditional"] = lambda: flows.with_tails(flows.realnvp)(_KEY, 3, cond_dim=COND_DIM)
CASES: dict[str, Callable[[], AbstractBijection]] = {
    "affine": lambda: Affine(jnp.zeros(3), 2.0),
    "affine scalar": lambda: Affine(1.0, 0.5),
    "triangular affine": lambda: _triangular(3),
    "permutation": lambda: Permutation([2, 0, 1]),
    "chain": lambda: Chain([_triangular(3), Coupling(_KEY, 3, RationalQuadraticSpline(), cond_dim=COND_DIM)]),
    "scan": lambda: Scan(eqx.filter_vmap(_layer)(jax.random.split(_KEY, 4))),
    **LAYERS,
    **FLOWS,
}


def perturbed[T](module: T, seed: int = 0, scale: float = 0.05) -> T:
    """`module` with noise on every parameter: at the start all log-dets are 0, and a test of them would be vacuous."""
    params, static = eqx.partition(module, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(params)
    return eqx.combine(unravel(flat + scale * jax.random.normal(jax.random.PRNGKey(seed), flat.shape)), static)
