"""Autoregressive flows whose layers are one network each, in place of a masked conditioner and a univariate map."""

from collections.abc import Sequence

from jaxtyping import ArrayLike, PRNGKeyArray

from numpyro_flows.arguments import require_counts, require_key
from numpyro_flows.bijections import AbstractBijection, AffineUnivariate, Autoregressive, BlockAutoregressive
from numpyro_flows.flows.stack import Fast, Order, directed, permuted
from numpyro_flows.networks import CausalTransformer


def bnaf(
    key: PRNGKeyArray,
    dim: int,
    *,
    fast: Fast = "sampling",
    cond_dim: int | None = None,
    num_layers: int = 2,
    hidden: Sequence[int] = (8, 8),
    order: Order = "random",
) -> AbstractBijection:
    """Block neural autoregressive flow: layers that are one monotone network each; the slow direction is numerical.

    Arguments are those of `autoregressive`, but for these:

    Args:
        hidden: units that each coordinate has in the hidden layers of the network.

    Raises:
        ValueError: as `autoregressive`, and where there is no hidden layer.
        RuntimeError: (of `eqx.error_if`) where the slow direction did not converge.

    Source: De Cao, Titov, Aziz 2019, arXiv 1904.04676.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.bnaf(jax.random.key(0), 3).shape
        (3,)
    """

    def layer(key: PRNGKeyArray, _: ArrayLike | None) -> AbstractBijection:
        return BlockAutoregressive(key, dim, cond_dim=cond_dim, hidden=hidden)

    return directed(fast, lambda: permuted(key, dim, num_layers, layer, order=order))


def tarflow(
    key: PRNGKeyArray,
    dim: int,
    *,
    fast: Fast = "density",
    cond_dim: int | None = None,
    num_layers: int = 4,
    block_size: int | None = None,
    width: int = 32,
    num_heads: int = 4,
    num_blocks: int = 2,
    max_log_scale: float = 4.0,
    order: Order = "alternating",
) -> AbstractBijection:
    """Transformer autoregressive flow: blocks of coordinates, each scaled and shifted in the light of those before it.

    Arguments are those of `autoregressive`, and these:

    Args:
        block_size: coordinates in a block; by default so many that there are at most 16 blocks.
        width: of the transformers.
        num_heads: of their attention.
        num_blocks: their depth.
        max_log_scale: bound on the log-scale of one layer.

    Raises:
        ValueError: as `autoregressive`, and where the heads do not divide the width or `block_size` is not 1 to `dim`.

    Source: Zhai et al. 2024, arXiv 2412.06329.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.tarflow(jax.random.key(0), 6, block_size=2).shape
        (6,)
    """
    require_key(key, "key")
    univariate = AffineUnivariate(max_log_scale)
    require_counts(dim=dim)
    size = -(-dim // 16) if block_size is None else block_size
    require_counts(1, dim, block_size=size)

    def layer(key: PRNGKeyArray, _: ArrayLike | None) -> AbstractBijection:
        conditioner = CausalTransformer(
            key,
            dim,
            univariate.num_params,
            block_size=size,
            width=width,
            num_heads=num_heads,
            num_blocks=num_blocks,
            cond_dim=cond_dim or 0,
        )
        return Autoregressive(conditioner, univariate, dim, cond_dim=cond_dim, depth=-(-dim // size))

    return directed(fast, lambda: permuted(key, dim, num_layers, layer, order=order))
