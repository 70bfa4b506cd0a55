"""Gaussianization flows: layers of marginal maps and rotations, whose density has a closed form."""

import itertools
from collections.abc import Callable, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_flows import bijections
from numpyro_flows.arguments import as_widths, described, require_counts, require_instance
from numpyro_flows.bijections import AbstractBijection, AbstractUnivariate
from numpyro_flows.bijections.mixture_cdf import Kind, MixtureCDF
from numpyro_flows.flows.stack import require_key_and_sizes, stacked
from numpyro_flows.gaussianization.rbig import RBIG, stack_of
from numpyro_flows.gaussianization.rotations import nearest_to_identity, random

Rotation = type[bijections.Householder] | type[bijections.Cayley]
"""How a trained rotation is parametrised."""


def gaussianization(
    key: PRNGKeyArray,
    dim: int,
    *,
    cond_dim: int | None = None,
    num_layers: int = 8,
    num_components: int = 8,
    kind: Kind = "normal",
    hidden: Sequence[int] = (32, 32),
    rotation: Rotation = bijections.Householder,
    init: RBIG | None = None,
) -> AbstractBijection:
    """Layers of a mixture's distribution function on every coordinate, and a rotation; all of it is trained.

    The flow has few parameters and no network: use it for data with few rows, or to inspect its layers. It starts near
        the identity, or equal to a greedy fit.

    Args:
        key: random key.
        dim: number of coordinates.
        cond_dim: length of a condition, on which the mixtures then depend; None without one.
        num_layers: number of layers.
        num_components: number of components of each mixture.
        kind: distribution of a component, "normal" or "logistic".
        hidden: widths of the networks' hidden layers, if there is a condition.
        rotation: `bijections.Householder` or `bijections.Cayley`.
        init: a fit by `fit_rbig` with any marginals except "empirical". The flow equals it at the start, and it
            determines the number and kind of the layers.

    Raises:
        ValueError: if a size is below 1, `kind` is unknown, or `init` has another dimension or "empirical" marginals.

    Source: Meng, Song, Song, Ermon 2020, arXiv 2003.01941.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows import flows
        >>> from numpyro_flows.gaussianization import fit_rbig
        >>> data = jax.random.exponential(jax.random.key(0), (500, 2))
        >>> fit = fit_rbig(jax.random.key(1), data, max_layers=2)
        >>> flow = flows.gaussianization(jax.random.key(2), 2, init=fit)
        >>> bool(abs(flow.inverse(data[0]) - fit.bijection.inverse(data[0])).max() < 1e-5)
        True
    """
    hidden = as_widths(hidden)

    def marginal(key: PRNGKeyArray, univariate: AbstractUnivariate, params: Array) -> AbstractBijection:
        if cond_dim is None:
            return eqx.tree_at(lambda e: e.params, bijections.Elementwise(dim, univariate), params)
        return _with_bias(
            bijections.masked_autoregressive(key, dim, univariate, cond_dim=cond_dim, hidden=hidden, passes=1), params
        )

    return _flow(key, dim, marginal, MixtureCDF(num_components, kind), num_layers, rotation, init)


def coupling_gaussianization(
    key: PRNGKeyArray,
    dim: int,
    *,
    cond_dim: int | None = None,
    num_layers: int = 8,
    num_components: int = 8,
    kind: Kind = "normal",
    hidden: Sequence[int] = (32, 32),
    passes: int = 2,
    rotation: Rotation = bijections.Householder,
    init: RBIG | None = None,
) -> AbstractBijection:
    """Like `gaussianization`, but a network predicts the mixtures of later coordinates from the earlier ones.

    The network adds to parameters that each coordinate has of its own. At the start its last weights are zero, and the
    flow is that of `gaussianization`.

    It takes the arguments of `gaussianization`, and these:

    Args:
        hidden: widths of the networks' hidden layers.
        passes: number of groups of coordinates, each of which depends on the groups before it. 2 gives a coupling that
            moves both halves, `dim` is fully autoregressive. It is also the largest number of sweeps in the sampling
            direction.

    Raises:
        ValueError: as `gaussianization`, and if `passes` is below 1.

    Source: Meng, Song, Song, Ermon 2020, arXiv 2003.01941; Ho et al. 2019, arXiv 1902.00275.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.coupling_gaussianization(jax.random.key(0), 3, num_layers=2).shape
        (3,)
    """
    require_counts(passes=passes)

    def marginal(key: PRNGKeyArray, univariate: AbstractUnivariate, params: Array) -> AbstractBijection:
        layer = bijections.masked_autoregressive(
            key, dim, univariate, cond_dim=cond_dim, hidden=hidden, passes=min(passes, dim)
        )
        return _with_bias(layer, params)

    return _flow(key, dim, marginal, MixtureCDF(num_components, kind), num_layers, rotation, init)


def _flow(
    key: PRNGKeyArray,
    dim: int,
    marginal: Callable[[PRNGKeyArray, AbstractUnivariate, Array], AbstractBijection],
    univariate: AbstractUnivariate,
    num_layers: int,
    rotation: Rotation,
    init: RBIG | None,
) -> bijections.Chain:
    require_key_and_sizes(key, dim, num_layers)
    if rotation not in (bijections.Householder, bijections.Cayley):
        raise TypeError(f"rotation expected bijections.Householder or bijections.Cayley, got {described(rotation)}")
    if init is None:
        rotations = stack_of([rotation.from_matrix(matrix) for matrix in _mixing(dim, num_layers)])
        params = jnp.zeros((num_layers, dim, univariate.num_params))
        affine = bijections.Affine(jnp.zeros(dim))
    else:
        univariate, params, rotations, affine = _parts(init, dim)
        num_layers = init.layers
        if rotation is not bijections.Householder:
            matrices = np.asarray(eqx.filter_vmap(lambda r: r.matrix())(rotations))
            rotations = stack_of([rotation.from_matrix(matrix) for matrix in matrices])

    def layer(key: PRNGKeyArray, rotation: AbstractBijection, params: Array) -> AbstractBijection:
        return bijections.Chain([bijections.Invert(marginal(key, univariate, params)), rotation])

    return bijections.Chain([stacked(key, dim, num_layers, layer, rotations, params), affine])


def _parts(
    init: RBIG, dim: int
) -> tuple[AbstractUnivariate, Float[Array, "layers dim n"], bijections.Householder, bijections.Affine]:
    """The parts of a fit."""
    require_instance(RBIG, "gaussianization.fit_rbig(rng_key, data)", init=init)
    if init.bijection.shape != (dim,):
        raise ValueError(f"init expected a fit of {dim} coordinates, got one of {init.bijection.shape[0]}")
    layers, affine = init.bijection.bijections
    inverted, rotations = layers.layers.bijections  # pyright: ignore[reportAttributeAccessIssue]
    marginals = inverted.bijection
    if not isinstance(marginals, bijections.Elementwise):
        raise ValueError("init expected a fit whose marginals are parametric, got marginal='empirical'")
    return marginals.univariate, marginals.params, rotations, affine  # pyright: ignore[reportReturnType]


def _mixing(dim: int, num_layers: int) -> list[np.ndarray]:
    """Rotations from each layer's coordinates to the next one's, whose product is the identity."""
    rng = np.random.default_rng(0)  # structure, as the orders of `permuted`: the same for every key
    eye = np.eye(dim)
    frames = [eye, *(nearest_to_identity(random(dim, rng)) for _ in range(num_layers - 1)), eye]
    return [after @ now.T for now, after in itertools.pairwise(frames)]


def _with_bias(layer: bijections.Autoregressive, params: Float[Array, "dim n"]) -> bijections.Autoregressive:
    """The layer with these parameters if its network, whose last weights are zero, adds nothing."""
    return eqx.tree_at(lambda a: a.conditioner.mlp.biases[-1], layer, params.ravel())
