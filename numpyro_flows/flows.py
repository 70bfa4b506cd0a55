"""Recipes: a key and a dimension in, a bijection out."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from numpyro_flows.bijections import (
    AbstractBijection,
    AffineUnivariate,
    Chain,
    Coupling,
    Elementwise,
    Permutation,
    RationalQuadraticSpline,
    Scan,
    SinhArcsinh,
)

Recipe = Callable[..., AbstractBijection]
"""`recipe(key, dim) -> bijection`; a recipe of this module with other options is `functools.partial(recipe, ...)`."""


_DISORDER = 0.4  # most that a coordinate of an ordered stack moves, as a share of their number


def realnvp(
    key: PRNGKeyArray,
    dim: int,
    *,
    cond_dim: int | None = None,
    num_layers: int = 8,
    hidden: Sequence[int] = (32, 32),
    max_log_scale: float = 4.0,
    ordered: bool = False,
) -> AbstractBijection:
    """Affine couplings: `y_2 = exp(s(x_1)) x_2 + t(x_1)`, halves changing from layer to layer.

    Cheap, smooth, and after an affine map that whitens enough for most posteriors; in one dimension it is affine.

    Args:
        key: random key.
        dim: number of coordinates.
        cond_dim: length of a condition, None without one.
        num_layers: number of couplings.
        hidden: widths of the conditioners' hidden layers.
        max_log_scale: bound on the log-scale of one layer.
        ordered: whether coordinates stay near their places from layer to layer, in place of any order: for posteriors,
            whose coordinates come with parents before children.

    Raises:
        ValueError: where `dim` or `num_layers` is below 1.

    Source: Dinh, Sohl-Dickstein, Bengio 2017, arXiv 1605.08803.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> bijection = flows.realnvp(jax.random.key(0), 3, num_layers=4)
        >>> y, log_det = bijection.transform_and_log_det(jax.numpy.ones(3))
        >>> y.shape, log_det.shape
        ((3,), ())
    """
    univariate = AffineUnivariate(max_log_scale)
    return _couplings(key, dim, univariate, cond_dim=cond_dim, num_layers=num_layers, hidden=hidden, ordered=ordered)


def nsf_coupling(
    key: PRNGKeyArray,
    dim: int,
    *,
    cond_dim: int | None = None,
    num_layers: int = 8,
    hidden: Sequence[int] = (32, 32),
    num_bins: int = 8,
    bound: float = 5.0,
    ordered: bool = False,
) -> AbstractBijection:
    """Rational-quadratic-spline couplings: each coordinate of one half goes through a monotone spline.

    Bends what an affine coupling can only shift and scale, at about three times its price.

    Args:
        key: random key.
        dim: number of coordinates.
        cond_dim: length of a condition, None without one.
        num_layers: number of couplings.
        hidden: widths of the conditioners' hidden layers.
        num_bins: pieces of a spline.
        bound: the splines act on `[-bound, bound]` and are the identity outside.
        ordered: as in `realnvp`.

    Raises:
        ValueError: where `dim` or `num_layers` is below 1.

    Source: Durkan, Bekasov, Murray, Papamakarios 2019, arXiv 1906.04032.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.nsf_coupling(jax.random.key(0), 3, cond_dim=2).cond_shape
        (2,)
    """
    univariate = RationalQuadraticSpline(num_bins, bound)
    return _couplings(key, dim, univariate, cond_dim=cond_dim, num_layers=num_layers, hidden=hidden, ordered=ordered)


def with_tails(recipe: Recipe) -> Recipe:
    """The recipe of the same flow with a `SinhArcsinh` of every coordinate behind it.

    The tails of a flow on a Gaussian base are Gaussian or nearly so. Those of a posterior's log-scales are not, and
    tails decide on k-hat.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.with_tails(flows.realnvp)(jax.random.key(0), 3).shape
        (3,)
    """

    def recipe_with_tails(key: PRNGKeyArray, dim: int, **options: Any) -> AbstractBijection:
        return Chain([recipe(key, dim, **options), Elementwise(dim, SinhArcsinh())])

    return recipe_with_tails


def _couplings(key, dim, univariate, *, cond_dim, num_layers, hidden, ordered) -> AbstractBijection:
    def layer(key: PRNGKeyArray, permutation: Int[Array, " dim"]) -> AbstractBijection:
        coupling = Coupling(key, dim, univariate, cond_dim=cond_dim, hidden=hidden)
        return Chain([coupling, Permutation(permutation)])

    return _stack(key, dim, num_layers, layer, ordered)


def _stack(key: PRNGKeyArray, dim: int, num_layers: int, layer: Callable, ordered: bool) -> AbstractBijection:
    """`num_layers` of `layer(key, permutation)`, stacked and scanned.

    The coordinates go through the orders natural, its reverse, a random one, its reverse, ... and back to natural: so
    two layers move every coordinate, the halves keep mixing, and layers that are the identity make a stack that is.
    An `ordered` stack moves none far: a model's trace has scales before what they scale, and these are what a coupling
    should condition on (centred eight schools: certified after 1,200 to 2,800 steps, else after 2,800 to 5,200).
    """
    if dim < 1 or num_layers < 1:
        raise ValueError(f"a flow expected dim >= 1 and num_layers >= 1, got dim={dim} and num_layers={num_layers}")
    rng = np.random.default_rng(0)  # orders are structure, not parameters: the same for every key
    natural = np.arange(dim)
    num_random = (num_layers - 1) // 2
    if ordered:
        others = [np.argsort(natural + _DISORDER * dim * rng.uniform(-1.0, 1.0, dim)) for _ in range(num_random)]
    else:
        others = [rng.permutation(dim) for _ in range(num_random)]
    pairs = [natural, *others]
    there_and_back = [order for pair in pairs for order in (pair, pair[::-1])]
    orders = [*there_and_back[:num_layers], np.arange(dim)]
    permutations = np.stack([np.argsort(now)[after] for now, after in itertools.pairwise(orders)])
    layers = eqx.filter_jit(eqx.filter_vmap(layer))  # compiled: op by op it takes ten times as long
    return Scan(layers(jax.random.split(key, num_layers), jnp.asarray(permutations)))
