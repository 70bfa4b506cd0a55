"""Levels with ever fewer coordinates: half of them leave for the base after each level."""

from collections.abc import Sequence

from jaxtyping import Array

from numpyro_flows.bijections.base import AbstractBijection, merge_cond_shapes
from numpyro_flows.bijections.composition import AbstractComposition, Part


class Multiscale(AbstractComposition):
    """`f = f_0 o f_1 o f_2 o ...`, where level `f_k` maps every 2^k-th coordinate: 0, 2^k, 2 2^k, ...

    Towards the base, `f_0^-1` takes all coordinates. Then every second coordinate leaves unchanged, `f_1^-1` takes the
    rest, and so on. Coordinates keep their places: the odd multiples of 2^k leave after level `k`. So levels that are
    the identity give the identity.

    Args:
        levels: at least one, of shapes `(dim,)`, `(dim / 2,)`, `(dim / 4,)`, ...; FlowJAX bijections are allowed.

    Raises:
        ValueError: for an empty sequence, sizes that do not halve exactly, or conditions whose shapes differ.

    Source: RealNVP, Dinh, Sohl-Dickstein, Bengio 2017, arXiv 1605.08803.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine, Multiscale
        >>> levels = Multiscale([Affine(jnp.zeros(4)), Affine(jnp.zeros(2), 3.0)])
        >>> levels.transform(jnp.ones(4)).round(2).tolist()
        [3.0, 1.0, 3.0, 1.0]
    """

    levels: tuple[AbstractBijection, ...]

    def __init__(self, levels: Sequence[AbstractBijection]):
        self.levels = tuple(levels)
        shapes = [level.shape for level in self.levels]
        dim = shapes[0][0] if shapes and len(shapes[0]) == 1 else 0
        if dim < 1 or dim % 2 ** (len(shapes) - 1) or shapes != [(dim // 2**k,) for k in range(len(shapes))]:
            raise ValueError(f"Multiscale expected levels of shapes (dim,), (dim / 2,), (dim / 4,), ..., got {shapes}")
        self.shape, self.cond_shape = shapes[0], merge_cond_shapes(self.levels)

    def _parts(self, condition: Array | None) -> list[Part]:
        return [Part(level, condition, index=slice(None, None, 2**k)) for k, level in enumerate(self.levels)][::-1]
