"""Autoregressive flows: one direction is fast, the other uses sweeps."""

from collections.abc import Sequence
from typing import TypedDict, Unpack

from jaxtyping import ArrayLike, PRNGKeyArray

from numpyro_flows import bijections
from numpyro_flows.bijections import AbstractBijection, AbstractUnivariate
from numpyro_flows.flows.coupling import spline
from numpyro_flows.flows.stack import Adjacency, Fast, Order, directed, permuted

_AFFINE = bijections.AffineUnivariate()


class AutoregressiveOptions(TypedDict, total=False):
    """Options of all flows of masked layers; `autoregressive` explains them and has their defaults."""

    cond_dim: int | None
    num_layers: int
    hidden: Sequence[int] | None
    passes: int | None
    order: Order
    adjacency: Adjacency


def autoregressive(
    key: PRNGKeyArray,
    dim: int,
    *,
    univariate: AbstractUnivariate = _AFFINE,
    fast: Fast = "density",
    cond_dim: int | None = None,
    num_layers: int = 4,
    hidden: Sequence[int] | None = None,
    passes: int | None = None,
    order: Order = "random",
    adjacency: Adjacency = None,
) -> AbstractBijection:
    """Masked autoregressive layers of any univariate map, in orders that change from layer to layer.

    Args:
        key: random key.
        dim: number of coordinates.
        univariate: map of each coordinate in the fast direction.
        fast: "density" or "sampling". With "density", scoring takes one pass and drawing uses sweeps: use it for data.
            With "sampling", drawing takes one pass and scoring uses sweeps: use it for guides.
        cond_dim: length of a condition, None without one.
        num_layers: number of layers.
        hidden: widths of the conditioners' hidden layers; by default two layers as wide as the number of coordinates,
            at least 64.
        passes: number of groups of coordinates, each of which depends on the groups before it, from 2, a coupling, to
            `dim`, the default. It is also the largest number of sweeps in the slow direction.
        order: order of the coordinates in the layers: "random", "alternating" between natural and reversed, or
            "nearby", in which no coordinate moves far.
        adjacency: `adjacency[i, j]` says whether coordinate `i` may depend on `j` in one layer; all by default.

    Raises:
        ValueError: if a size is out of its range, `fast` or `order` is unknown, or `adjacency` is not `(dim, dim)`.

    Example:
        >>> import jax
        >>> from numpyro_flows import bijections, flows
        >>> flows.autoregressive(jax.random.key(0), 6, univariate=bijections.SinhArcsinh(), passes=3).shape
        (6,)
    """

    def layer(key: PRNGKeyArray, adjacency: ArrayLike | None) -> AbstractBijection:
        return bijections.masked_autoregressive(
            key,
            dim,
            univariate,
            cond_dim=cond_dim,
            hidden=(max(64, dim),) * 2 if hidden is None else hidden,
            passes=passes,
            adjacency=adjacency,
        )

    return directed(fast, lambda: permuted(key, dim, num_layers, layer, order=order, adjacency=adjacency))


def maf(
    key: PRNGKeyArray, dim: int, *, max_log_scale: float = 4.0, **options: Unpack[AutoregressiveOptions]
) -> AbstractBijection:
    """Masked autoregressive flow: `x_i = exp(s(y_<i)) y_i + t(y_<i)`; the density takes one pass.

    It takes the arguments of `autoregressive`, and these:

    Args:
        max_log_scale: bound on the log-scale of one layer.

    Raises:
        ValueError: as `autoregressive`.

    Source: Papamakarios, Pavlakou, Murray 2017, arXiv 1705.07057.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.maf(jax.random.key(0), 3).shape
        (3,)
    """
    return autoregressive(key, dim, univariate=bijections.AffineUnivariate(max_log_scale), fast="density", **options)


def iaf(
    key: PRNGKeyArray, dim: int, *, max_log_scale: float = 4.0, **options: Unpack[AutoregressiveOptions]
) -> AbstractBijection:
    """Inverse autoregressive flow: `y_i = exp(s(x_<i)) x_i + t(x_<i)`; a draw takes one pass.

    Args and errors are those of `maf`. Source: Kingma et al. 2016, arXiv 1606.04934.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.iaf(jax.random.key(0), 3).shape
        (3,)
    """
    return autoregressive(key, dim, univariate=bijections.AffineUnivariate(max_log_scale), fast="sampling", **options)


def nsf_autoregressive(
    key: PRNGKeyArray,
    dim: int,
    *,
    fast: Fast = "density",
    num_bins: int = 8,
    bound: float = 5.0,
    circular: bool = False,
    **options: Unpack[AutoregressiveOptions],
) -> AbstractBijection:
    """Autoregressive rational-quadratic splines, for densities with sharp structure.

    It takes the arguments of `autoregressive`, and these:

    Args:
        num_bins: number of pieces of a spline.
        bound: the splines act on `[-bound, bound]` and are the identity outside.
        circular: whether all coordinates are angles, as in `nsf_coupling`.

    Raises:
        ValueError: as `autoregressive`, and for an impossible spline.

    Source: Durkan, Bekasov, Murray, Papamakarios 2019, arXiv 1906.04032; angles: Rezende et al. 2020, arXiv 2002.02428.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.nsf_autoregressive(jax.random.key(0), 3, fast="sampling").shape
        (3,)
    """
    return autoregressive(key, dim, univariate=spline(num_bins, bound, circular), fast=fast, **options)


def naf(
    key: PRNGKeyArray,
    dim: int,
    *,
    fast: Fast = "sampling",
    num_units: int = 8,
    **options: Unpack[AutoregressiveOptions],
) -> AbstractBijection:
    """Neural autoregressive flow: `y_i = logit(sum_k w_k sigmoid(a_k x_i + b_k))`, with weights that depend on `x_<i`.

    The flow is smooth and onto the reals; the slow direction is numerical. It has three layers by default.

    It takes the arguments of `autoregressive`, and these:

    Args:
        num_units: number of sigmoids for a coordinate.

    Raises:
        ValueError: as `autoregressive`, and if `num_units` is below 1.
        RuntimeError: (from `eqx.error_if`) if the slow direction did not converge.

    Source: Huang, Krueger, Lacoste, Courville 2018, arXiv 1804.00779.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.naf(jax.random.key(0), 3).shape
        (3,)
    """
    univariate = bijections.DeepSigmoid(num_units)
    options = AutoregressiveOptions(num_layers=3) | options
    return autoregressive(key, dim, univariate=univariate, fast=fast, **options)


def bernstein(
    key: PRNGKeyArray,
    dim: int,
    *,
    fast: Fast = "density",
    degree: int = 12,
    bound: float = 5.0,
    **options: Unpack[AutoregressiveOptions],
) -> AbstractBijection:
    """Autoregressive Bernstein polynomials, with straight lines outside `[-bound, bound]`.

    The slow direction is numerical. It takes the arguments of `autoregressive`, and these:

    Args:
        degree: degree of the polynomials.
        bound: half of the interval's length.

    Raises:
        ValueError: as `autoregressive`, and for an impossible polynomial.
        RuntimeError: (from `eqx.error_if`) if the slow direction did not converge.

    Source: Ramasinghe, Fernando, Khan, Barnes 2022, arXiv 2102.03509.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.bernstein(jax.random.key(0), 3).shape
        (3,)
    """
    return autoregressive(key, dim, univariate=bijections.Bernstein(degree, bound), fast=fast, **options)
