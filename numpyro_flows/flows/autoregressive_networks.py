"""Autoregressive flows whose layers are single networks, without a separate conditioner and univariate map."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Int, PRNGKeyArray

from numpyro_flows.arguments import described, require_counts, require_key
from numpyro_flows.bijections import (
    AbstractBijection,
    AffineUnivariate,
    Autoregressive,
    BlockAutoregressive,
    Chain,
    Permutation,
)
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
    """Block neural autoregressive flow: each layer is one monotone network; the slow direction is numerical.

    It takes the arguments of `autoregressive`, except for these:

    Args:
        hidden: numbers of units for each coordinate in the hidden layers of the network.

    Raises:
        ValueError: as `autoregressive`, and if there is no hidden layer.
        RuntimeError: (from `eqx.error_if`) if the slow direction did not converge.

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
    image_shape: Sequence[int] | None = None,
    patch_size: int = 2,
    width: int = 32,
    num_heads: int = 4,
    num_blocks: int = 2,
    max_log_scale: float = 4.0,
    order: Order = "alternating",
) -> AbstractBijection:
    """Transformer autoregressive flow: scales and shifts blocks of coordinates, depending on the blocks before them.

    With `image_shape` the coordinates are the pixels of an image, row by row, and a block is a square patch. Patches
    are in raster order, reversed in every other layer.

    It takes the arguments of `autoregressive`, and these:

    Args:
        block_size: number of coordinates in a block; by default at most 16 blocks are made.
        image_shape: `(height, width)` or `(channels, height, width)` of an image with `dim` numbers.
        patch_size: side of a patch in pixels, with `image_shape`.
        width: width of the transformers.
        num_heads: number of attention heads.
        num_blocks: number of transformer blocks in a layer.
        max_log_scale: bound on the log-scale of one layer.

    Raises:
        ValueError: as `autoregressive`, and if the heads do not divide the width, or `block_size` is not 1 to `dim`.
            Also if an image does not have `dim` numbers, patches do not divide it, or `image_shape` is given with a
            `block_size` or another `order`.

    Source: Zhai et al. 2024, arXiv 2412.06329.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.tarflow(jax.random.key(0), 6, block_size=2).shape
        (6,)
        >>> flows.tarflow(jax.random.key(0), 64, image_shape=(8, 8)).shape
        (64,)
    """
    require_key(key, "key")
    univariate = AffineUnivariate(max_log_scale)
    require_counts(dim=dim, patch_size=patch_size)
    size = -(-dim // 16) if block_size is None else block_size
    pixels = None
    if image_shape is not None:
        pixels, size = _patches(image_shape, patch_size, dim)
        if block_size is not None:
            raise ValueError(
                f"block_size expected None with an image_shape, whose blocks are patches, got {block_size}"
            )
        if order != "alternating":
            raise ValueError(f"order expected 'alternating' with an image_shape, got {order!r}")
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

    flow = directed(fast, lambda: permuted(key, dim, num_layers, layer, order=order))
    if pixels is None:
        return flow
    return Chain([Permutation(pixels), flow, Permutation(np.argsort(pixels))])


def _patches(image_shape: Sequence[int], patch_size: int, dim: int) -> tuple[Int[np.ndarray, " dim"], int]:
    """Indices of an image's pixels, patch by patch in raster order, and the number of pixels in a patch."""
    expected = "image_shape expected (height, width) or (channels, height, width)"
    if isinstance(image_shape, str) or not isinstance(image_shape, Sequence):
        raise TypeError(f"{expected}, got {described(image_shape)}")
    if len(image_shape) not in (2, 3):
        raise ValueError(f"{expected}, got {tuple(image_shape)}")
    for length in image_shape:
        require_counts(image_shape=length)
    channels, height, width = (1, *image_shape)[-3:]
    if channels * height * width != dim:
        raise ValueError(f"{expected} with dim={dim} numbers in all, got {tuple(image_shape)}")
    if height % patch_size or width % patch_size:
        raise ValueError(f"patch_size expected a divisor of the sides of {tuple(image_shape)}, got {patch_size}")
    pixels = np.arange(dim).reshape(channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return pixels.transpose(1, 3, 0, 2, 4).ravel(), channels * patch_size**2
