"""Power transforms that make skewed columns nearly normal, folded into the flow that is trained on them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from numpyro_flows.bijections import AbstractBijection, Frozen, YeoJohnson
from numpyro_flows.bijections.yeo_johnson import away_from_roots, power_transform
from numpyro_flows.density.row_blocks import blocks
from numpyro_flows.modeling.guides import affine

_POWERS, _NUM_TRIED = (-4.0, 6.0), 101
_LEAST_EXTREME = 0.8  # smallest extreme of transformed data, relative to that of as many normal values
_STEEPEST = 9.0  # logarithm of a slope; steeper ones lose the digits of single precision
_LEAST_GAIN = 0.01  # nats a row: with a smaller gain a column stays as it is
_MARGIN = 1.0  # the transform is linear beyond so many robust standard deviations from the data
_SOME_ROWS = 5_000  # powers are fitted to so many rows; more do not improve them


class Powers(NamedTuple):
    """Of each column, with `z = (x - loc) / scale`, the Yeo-Johnson transform of `z`."""

    loc: Float[np.ndarray, " dim"]
    scale: Float[np.ndarray, " dim"]
    power: Float[np.ndarray, " dim"]
    low: Float[np.ndarray, " dim"]
    high: Float[np.ndarray, " dim"]

    @classmethod
    def of(
        cls, x: Float[np.ndarray, "num dim"], weights: Float[np.ndarray, " num"], rng: np.random.Generator
    ) -> "Powers | None":
        """Powers with the largest likelihood of a normal distribution; None if no column gains by more than chance."""
        num = len(x)
        alike = bool((weights == weights[0]).all())
        some = x[rng.choice(num, min(num, _SOME_ROWS), replace=not alike, p=weights / weights.sum())]
        loc, quartiles = np.median(some, axis=0), np.quantile(some, [0.25, 0.75], axis=0)
        scale = (quartiles[1] - quartiles[0]) / (2 * ndtri(0.75))
        scale = np.where(scale > 0, scale, some.std(0))  # if half of the values are equal
        usable = scale > 0
        z = (some - loc) / np.where(usable, scale, 1.0)
        low, high = ((end - loc) / np.where(usable, scale, 1.0) for end in (x.min(0), x.max(0)))
        low, high = low - _MARGIN, high + _MARGIN
        power = np.ones(x.shape[1])
        least = max(_LEAST_GAIN, 0.5 * np.log(num) / num)  # as by Schwarz's criterion
        for column in np.flatnonzero(usable):
            tried = np.linspace(
                max(_POWERS[0], 1.0 - _STEEPEST / np.log1p(high[column])),
                min(_POWERS[1], 1.0 + _STEEPEST / np.log1p(-low[column])),
                _NUM_TRIED,
            )
            tried = away_from_roots(tried)
            gains = [_gain(z[:, column], power) for power in tried]
            if max(gains) > least:
                power[column] = tried[int(np.argmax(gains))]
        if (power == 1.0).all():
            return None
        return cls(loc, np.where(usable, scale, 1.0), power, low, high)

    def rows(self, x: Float[np.ndarray, "num dim"]) -> tuple[Float[np.ndarray, "num dim"], Float[np.ndarray, " num"]]:
        """Transformed rows, and `log |det|` of that."""
        y, log_det = np.empty_like(x), np.empty(len(x))
        for block in blocks(len(x)):
            z = (x[block] - self.loc) / self.scale
            y[block], log_slope = power_transform(z, self.power, self.low, self.high, np)
            log_det[block] = log_slope.sum(1) - np.log(self.scale).sum()
        return y, log_det

    @property
    def bijections(self) -> tuple[AbstractBijection, ...]:
        """From transformed rows to rows."""
        affine_map = affine(jnp.asarray(self.loc), jnp.asarray(self.scale))
        return Frozen(YeoJohnson(self.power, self.low, self.high)), Frozen(affine_map)


def _gain(z: Float[np.ndarray, " num"], power: float) -> float:
    """Gain in the likelihood of a normal distribution by the transform, in nats a row.

    None if the transform pulls a tail in so far that the normal distribution reaches far beyond the data, for example
    with many zeros beside a few large values. Far out a small step is then a large one for the data.
    """
    y, log_slope = power_transform(z, power, z.min(), z.max(), np)
    sd = y.std()
    if not (np.isfinite(sd) and sd > 0):
        return -np.inf
    drawn_in = y.max() - y.mean() if power < 1.0 else y.mean() - y.min()
    if drawn_in < _LEAST_EXTREME * ndtri(1.0 - 1.0 / len(z)) * sd:
        return -np.inf
    return float(log_slope.mean() - np.log(sd / z.std()))
