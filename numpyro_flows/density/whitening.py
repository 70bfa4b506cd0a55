"""Location and scale of data, folded into the flow that is trained on them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from numpyro_flows.bijections import AbstractBijection, Chain, ConditionLayout, Frozen, StandardizedCondition
from numpyro_flows.density.condition_scales import condition_scales
from numpyro_flows.density.losses import Rows
from numpyro_flows.density.moments import mean_and_deviation
from numpyro_flows.density.row_blocks import blocks
from numpyro_flows.gaussianization.entropies import spacing_entropies
from numpyro_flows.modeling.guides import affine

FULL_COVARIANCE = 4  # rows for each coordinate from which a covariance whitens better than standard deviations
_MAX_FULL_DIM = 256  # above this, whitening uses standard deviations
_RIDGE = 1e-6  # added to the correlation matrix, so that copied coordinates do not make it singular
_SOME_ROWS = 5_000  # to compare two ways of whitening


class Whitening(NamedTuple):
    """Location and scale of rows, and of their conditions: a flow is trained on `scale^-1 (x - loc)`."""

    loc: Float[np.ndarray, " dim"]
    scale: Float[np.ndarray, " dim"] | Float[np.ndarray, "dim dim"]
    condition_loc: Float[np.ndarray, " cond_dim"]
    condition_scale: Float[np.ndarray, " cond_dim"]

    @classmethod
    def identity(cls, rows: Rows) -> "Whitening":
        dim, cond_dim = rows.x.shape[1], 0 if rows.condition is None else rows.condition.shape[1]
        return cls(np.zeros(dim), np.ones(dim), np.zeros(cond_dim), np.ones(cond_dim))

    @classmethod
    def of(cls, rows: Rows, rng: np.random.Generator, layout: ConditionLayout | None = None) -> "Whitening":
        """Whitening by standard deviations, or by a root of the covariance if that makes the entropy smaller.

        The entropy is that of the data if the coordinates were then independent. Measurements that are nearly functions
        of each other need the covariance (breast cancer: 5 nats against 37). If single coordinates have unusual shapes,
        mixing them costs more than it gains (digits: 64 against 50). `layout` is the layout of conditions that are not
        plain vectors.
        """
        loc, deviation = mean_and_deviation(rows.x, rows.weights)
        num, dim = rows.x.shape
        scale = deviation
        if dim <= _MAX_FULL_DIM and num >= FULL_COVARIANCE * dim:
            correlation = np.zeros((dim, dim))
            for block in blocks(num):
                standard = (rows.x[block] - loc) / deviation
                correlation += (rows.weights[block, None] * standard).T @ standard / num
            root = np.linalg.cholesky(correlation + _RIDGE * np.eye(dim))
            chosen = rng.choice(num, min(num, _SOME_ROWS), p=rows.weights / rows.weights.sum())
            some = (rows.x[chosen] - loc) / deviation
            mixed = np.linalg.solve(root, some.T).T
            if _sum_of_entropies(mixed) + np.log(np.diagonal(root)).sum() < _sum_of_entropies(some):
                scale = deviation[:, None] * root
        condition = np.zeros((num, 0)) if rows.condition is None else rows.condition
        return cls(loc, scale, *condition_scales(condition, rows.weights, layout))

    @property
    def log_det(self) -> float:
        diagonal = self.scale if self.scale.ndim == 1 else np.diagonal(self.scale)
        return -float(np.log(diagonal).sum())

    def rows(self, rows: Rows) -> Rows:
        dtype = jnp.result_type(float)
        x = np.empty(rows.x.shape, dtype)
        for block in blocks(len(x)):
            centred = rows.x[block] - self.loc
            x[block] = centred / self.scale if self.scale.ndim == 1 else np.linalg.solve(self.scale, centred.T).T
        condition = None
        if rows.condition is not None:
            condition = ((rows.condition - self.condition_loc) / self.condition_scale).astype(dtype)
        return Rows(x, condition, rows.weights.astype(dtype))

    def fold(self, bijection: AbstractBijection, *after: AbstractBijection) -> AbstractBijection:
        """The bijection of rows that are not whitened, followed by the bijections after it."""
        whole = Chain([bijection, Frozen(affine(jnp.asarray(self.loc), jnp.asarray(self.scale))), *after])
        if bijection.cond_shape is None:
            return whole
        return StandardizedCondition(whole, self.condition_loc, self.condition_scale)


def _sum_of_entropies(x: Float[np.ndarray, "num dim"]) -> float:
    return float(spacing_entropies(x).mean(0).sum())
