"""Blocks of multivariate normal distributions and of their mixtures: marginals and conditionals in closed form."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from numpyro_flows.bijections import (
    AbstractBijection,
    Affine,
    Identity,
    LULinear,
    Permutation,
    QRLinear,
    TriangularAffine,
)
from numpyro_flows.bijections.compose import layers_of
from numpyro_flows.bijections.composition import Part
from numpyro_flows.bijections.linear import AbstractOrthogonal
from numpyro_flows.precision import full_precision

_LINEAR = (Identity, Affine, TriangularAffine, LULinear, QRLinear, AbstractOrthogonal, Permutation)


class GaussianBlocks(NamedTuple):
    """`sum_k exp(logits_k) N(x; loc_k, root_k root_k^T)`; without `logits` and the axis `k`, one normal."""

    logits: Float[Array, "*batch k"] | None
    loc: Float[Array, "*batch_k dim"]
    root: Float[Array, "*batch_k dim num"]

    @classmethod
    @full_precision()
    def of(cls, bijection: AbstractBijection | None, base: dist.Distribution) -> "GaussianBlocks | None":
        """The blocks of a base with a linear bijection, None for the identity; None if there are no such blocks."""
        blocks = _of_base(base)
        if blocks is None or bijection is None:
            return blocks
        if bijection.cond_shape is not None:
            return None
        parts = [part for layer in layers_of(Part(bijection, None)) for part in layer]
        if not all(isinstance(part.bijection, _LINEAR) for part in parts):
            return None
        for part in parts:
            matrix, loc = _matrix_and_loc(part)
            moved = (matrix @ blocks.loc[..., None])[..., 0] + loc
            blocks = blocks._replace(loc=moved, root=matrix @ blocks.root)
        return blocks

    def marginal(self, places: tuple[int, ...]) -> dist.Distribution:
        """The distribution of some coordinates, in this order."""
        some = np.asarray(places)
        return self._distribution(self.logits, self.loc[..., some], ordered_root(self.root, places))

    @full_precision()
    def conditional(
        self, places: tuple[int, ...], given: tuple[int, ...], values: Float[Array, "*batch given"]
    ) -> dist.Distribution:
        """The distribution of the coordinates `places`, given those of `given`; together they are all."""
        num = len(given)
        root = ordered_root(self.root, (*given, *places))
        values = values if self.logits is None else values[..., None, :]
        z = solve_lower(root[..., :num, :num], values - self.loc[..., np.asarray(given)])
        shift = (root[..., num:, :num] @ z[..., None])[..., 0]
        logits = self.logits
        if logits is not None:
            log_det = jnp.log(jnp.diagonal(root[..., :num, :num], axis1=-2, axis2=-1)).sum(-1)
            logits = jax.nn.log_softmax(logits - log_det - 0.5 * (z**2).sum(-1))
        return self._distribution(logits, self.loc[..., np.asarray(places)] + shift, root[..., num:, num:])

    @staticmethod
    def _distribution(logits: Array | None, loc: Array, root: Array) -> dist.Distribution:
        root = jnp.broadcast_to(root, (*loc.shape, loc.shape[-1]))
        normal = dist.MultivariateNormal(loc, scale_tril=root)
        return normal if logits is None else dist.MixtureSameFamily(dist.Categorical(logits=logits), normal)


def _of_base(base: Any) -> GaussianBlocks | None:
    if isinstance(base, dist.MultivariateNormal):
        return GaussianBlocks(None, jnp.asarray(base.loc), jnp.asarray(base.scale_tril))
    if isinstance(base, dist.MixtureSameFamily):
        normals = _of_base(base.component_distribution)
        mixing: Any = base.mixing_distribution
        return None if normals is None else normals._replace(logits=jax.nn.log_softmax(mixing.logits))
    if isinstance(base, dist.Independent) and base.reinterpreted_batch_ndims == 1:
        inner: Any = base.base_dist
        shape = inner.batch_shape
        while isinstance(inner, dist.ExpandedDistribution):
            inner = inner.base_dist
        if isinstance(inner, dist.Normal):
            loc, scale = (jnp.broadcast_to(jnp.asarray(a), shape) for a in (inner.loc, inner.scale))
            return GaussianBlocks(None, loc, scale[..., None] * jnp.eye(loc.shape[-1], dtype=scale.dtype))
    return None


def _matrix_and_loc(part: Part) -> tuple[Float[Array, "dim dim"], Float[Array, " dim"]]:
    """Of a linear map."""
    origin = jnp.zeros(part.bijection.shape, jnp.result_type(float))
    return jax.jacfwd(lambda x: part.move(x, False)[0])(origin), part.move(origin, False)[0]


def ordered_root(root: Float[Array, "*batch dim num"], places: tuple[int, ...]) -> Float[Array, "*batch some some"]:
    """The triangular root, with positive diagonal, of the covariance `root root^T` of some coordinates in this order.

    It uses a QR decomposition, which loses half as many digits as the covariance does.
    """
    upper = jnp.linalg.qr(jnp.swapaxes(root[..., np.asarray(places), :], -1, -2), mode="r")
    sign = jnp.where(jnp.diagonal(upper, axis1=-2, axis2=-1) < 0, -1.0, 1.0).astype(upper.dtype)
    return jnp.swapaxes(sign[..., None] * upper, -1, -2)


def solve_lower(root: Float[Array, "*batch_1 dim dim"], x: Float[Array, "*batch_2 dim"]) -> Float[Array, "*batch dim"]:
    """`root^-1 x`, whose batch shapes broadcast."""
    batch = jnp.broadcast_shapes(root.shape[:-2], x.shape[:-1])
    root, x = jnp.broadcast_to(root, (*batch, *root.shape[-2:])), jnp.broadcast_to(x, (*batch, x.shape[-1]))
    return jax.scipy.linalg.solve_triangular(root, x[..., None], lower=True)[..., 0]
