"""Coupling flows: both directions are fast."""

from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PRNGKeyArray

from numpyro_flows import bijections
from numpyro_flows.arguments import require_callable, require_counts, require_flags, require_key
from numpyro_flows.bijections import AbstractBijection, AbstractUnivariate
from numpyro_flows.flows.stack import Adjacency, Order, Recipe, permuted

_AFFINE = bijections.AffineUnivariate()


class CouplingOptions(TypedDict, total=False):
    """Options of all coupling flows; `coupling` explains them and has their defaults."""

    cond_dim: int | None
    num_layers: int
    hidden: Sequence[int]
    order: Order
    adjacency: Adjacency


def coupling(
    key: PRNGKeyArray,
    dim: int,
    *,
    univariate: AbstractUnivariate = _AFFINE,
    cond_dim: int | None = None,
    num_layers: int = 8,
    hidden: Sequence[int] = (32, 32),
    order: Order = "random",
    adjacency: Adjacency = None,
) -> AbstractBijection:
    """Couplings of any univariate map: `y_2 = f(x_2; g(x_1))`, with halves that change from layer to layer.

    Args:
        key: random key.
        dim: number of coordinates.
        univariate: map of each coordinate.
        cond_dim: length of a condition, None without one.
        num_layers: number of couplings.
        hidden: widths of the conditioners' hidden layers.
        order: order of the coordinates, which determines the halves: "random", "alternating" between the same two
            halves, or "nearby", in which no coordinate moves far. The last one suits posteriors, where parents come
            before children.
        adjacency: `adjacency[i, j]` says whether coordinate `i` may depend on `j` in one layer; all by default.

    Raises:
        ValueError: if `dim` or `num_layers` is below 1, `order` is unknown, or `adjacency` is not `(dim, dim)`.

    Example:
        >>> import jax
        >>> from numpyro_flows import bijections, flows
        >>> flow = flows.coupling(jax.random.key(0), 3, univariate=bijections.Bernstein(), num_layers=4)
        >>> flow.shape
        (3,)
    """

    def layer(key: PRNGKeyArray, adjacency: ArrayLike | None) -> AbstractBijection:
        return bijections.Coupling(key, dim, univariate, cond_dim=cond_dim, hidden=hidden, adjacency=adjacency)

    return permuted(key, dim, num_layers, layer, order=order, adjacency=adjacency)


def nice(key: PRNGKeyArray, dim: int, **options: Unpack[CouplingOptions]) -> AbstractBijection:
    """Additive couplings `y_2 = x_2 + t(x_1)`, whose volume is constant, on a scaled base.

    Args and errors are those of `coupling`. Source: Dinh, Krueger, Bengio 2015, arXiv 1410.8516.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.nice(jax.random.key(0), 3).shape
        (3,)
    """
    shifts = coupling(key, dim, univariate=bijections.ShiftUnivariate(), **options)
    return bijections.Chain([bijections.Affine(jnp.zeros(dim)), shifts])


def realnvp(
    key: PRNGKeyArray, dim: int, *, max_log_scale: float = 4.0, **options: Unpack[CouplingOptions]
) -> AbstractBijection:
    """Affine couplings: `y_2 = exp(s(x_1)) x_2 + t(x_1)`, with halves that change from layer to layer.

    They are cheap and smooth, and after an affine map that whitens they are enough for most posteriors. In one
    dimension the flow is affine.

    It takes the arguments of `coupling`, and these:

    Args:
        max_log_scale: bound on the log-scale of one layer.

    Raises:
        ValueError: as `coupling`, and if `max_log_scale` is not positive.

    Source: Dinh, Sohl-Dickstein, Bengio 2017, arXiv 1605.08803.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> bijection = flows.realnvp(jax.random.key(0), 3, num_layers=4)
        >>> y, log_det = bijection.transform_and_log_det(jax.numpy.ones(3))
        >>> y.shape, log_det.shape
        ((3,), ())
    """
    return coupling(key, dim, univariate=bijections.AffineUnivariate(max_log_scale), **options)


def nsf_coupling(
    key: PRNGKeyArray,
    dim: int,
    *,
    num_bins: int = 8,
    bound: float = 5.0,
    circular: bool = False,
    **options: Unpack[CouplingOptions],
) -> AbstractBijection:
    """Rational-quadratic-spline couplings: each coordinate of one half passes through a monotone spline.

    A spline can bend a density that an affine coupling can only shift and scale, at about three times the cost.

    It takes the arguments of `coupling`, and these:

    Args:
        num_bins: number of pieces of a spline.
        bound: the splines act on `[-bound, bound]` and are the identity outside.
        circular: whether all coordinates are angles on `[-pi, pi)`, in place of real numbers. The base must then be a
            distribution of angles too: `dist.Uniform(-pi, pi).expand([dim]).to_event(1)`.

    Raises:
        ValueError: as `coupling`, and for an impossible spline.

    Source: Durkan, Bekasov, Murray, Papamakarios 2019, arXiv 1906.04032; angles: Rezende et al. 2020, arXiv 2002.02428.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.nsf_coupling(jax.random.key(0), 3, cond_dim=2).cond_shape
        (2,)
    """
    return coupling(key, dim, univariate=spline(num_bins, bound, circular), **options)


def spline(num_bins: int, bound: float, circular: bool) -> AbstractUnivariate:
    """The univariate map of a spline flow, on the line or on the circle."""
    require_flags(circular=circular)
    return bijections.CircularSpline(num_bins) if circular else bijections.RationalQuadraticSpline(num_bins, bound)


def glow(
    key: PRNGKeyArray,
    dim: int,
    *,
    cond_dim: int | None = None,
    num_layers: int = 8,
    hidden: Sequence[int] = (32, 32),
    max_log_scale: float = 4.0,
    linear: Callable[[PRNGKeyArray, int], AbstractBijection] = bijections.LULinear,
    order: Order = "random",
) -> AbstractBijection:
    """Layers of an affine coupling, an invertible matrix that mixes all coordinates, and an `ActNorm`.

    The flow starts as the identity, as a guide should. For density estimation, `bijections.initialize_from_data` makes
    every layer standardise its input.

    It takes the arguments of `coupling`, and these:

    Args:
        max_log_scale: bound on the log-scale of one coupling.
        linear: recipe `(key, dim)` of the matrix: `LULinear`, `QRLinear`, `Householder`, `Cayley`, `MatrixExponential`.

    Raises:
        ValueError: as `realnvp`.

    Source: Kingma, Dhariwal 2018, arXiv 1807.03039.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows import bijections, flows
        >>> flow = flows.glow(jax.random.key(0), 3, linear=bijections.Cayley)
        >>> data = jax.random.normal(jax.random.key(1), (100, 3))
        >>> flow = bijections.initialize_from_data(flow, 5.0 + 2.0 * data)
    """
    require_callable("bijections.LULinear", linear=linear)
    univariate = bijections.AffineUnivariate(max_log_scale)

    def layer(key: PRNGKeyArray, _: ArrayLike | None) -> AbstractBijection:
        coupling_key, linear_key = jax.random.split(key)
        affine_coupling = bijections.Coupling(coupling_key, dim, univariate, cond_dim=cond_dim, hidden=hidden)
        return bijections.Chain([affine_coupling, linear(linear_key, dim), bijections.ActNorm(dim)])

    return permuted(key, dim, num_layers, layer, order=order)


def multiscale(
    key: PRNGKeyArray, dim: int, *, cond_dim: int | None = None, flow: Recipe = realnvp, num_levels: int = 2
) -> AbstractBijection:
    """Flows of all coordinates, of half, of a quarter and so on: at each level half of the coordinates leave early.

    Use it for many ordered coordinates, such as series: later levels are cheap, and model the coarse structure.

    Args:
        key: random key.
        dim: number of coordinates, a multiple of `2 ** (num_levels - 1)`.
        cond_dim: length of a condition, None without one.
        flow: recipe of a level's flow.
        num_levels: number of levels.

    Raises:
        ValueError: if `num_levels` is below 1 or `dim` is not a multiple of `2 ** (num_levels - 1)`.

    Source: Dinh, Sohl-Dickstein, Bengio 2017, arXiv 1605.08803.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.multiscale(jax.random.key(0), 12, num_levels=3).shape
        (12,)
    """
    require_key(key, "key")
    require_counts(dim=dim, num_levels=num_levels)
    require_callable("flows.realnvp", flow=flow)
    if dim % 2 ** (num_levels - 1):
        raise ValueError(f"dim expected a multiple of 2 ** (num_levels - 1) = {2 ** (num_levels - 1)}, got {dim}")
    keys = jax.random.split(key, num_levels)
    return bijections.Multiscale([flow(k, dim // 2**level, cond_dim=cond_dim) for level, k in enumerate(keys)])
