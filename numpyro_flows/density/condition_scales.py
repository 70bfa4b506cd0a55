"""Locations and scales of conditions: one for each number of a vector, for each feature of a set, series or image."""

import numpy as np
from jaxtyping import Float

from numpyro_flows.bijections import ConditionLayout
from numpyro_flows.bijections.condition_layout import Leaf
from numpyro_flows.density.moments import mean_and_deviation


def condition_scales(
    values: Float[np.ndarray, "num cond_dim"], weights: Float[np.ndarray, " num"], layout: ConditionLayout | None
) -> tuple[Float[np.ndarray, " cond_dim"], Float[np.ndarray, " cond_dim"]]:
    """Location and scale by which the numbers of conditions are standardised.

    Each number of a vector has its own. In a set or a series, `(places, features)`, all places share those of a
    feature; in an image, `(channels, ...)`, all pixels share those of a channel. Integers and booleans stay as they
    are. Values that a `mask` beside an array leaves out do not count.
    """
    if layout is None:
        loc, scale = mean_and_deviation(values, weights)
        return loc, scale
    locs, scales = np.zeros(layout.size), np.ones(layout.size)
    masks = {leaf.path[:-1]: values[:, where] for leaf, where in layout.slices() if leaf.path[-1:] == ("mask",)}
    for leaf, where in layout.slices():
        if leaf.kind != "real" or leaf.size == 0:
            continue
        array = values[:, where].reshape(-1, *leaf.shape)
        features = by_feature(leaf, array)
        counts = np.broadcast_to(weights[:, None], features.shape[:2])
        mask = masks.get(leaf.path[:-1])
        if mask is not None and len(leaf.shape) == 2 and mask.shape[1] == leaf.shape[0]:
            counts = counts * mask
        if counts.sum() > 0:
            flat = features.reshape(-1, features.shape[-1])
            loc, scale = mean_and_deviation(flat, np.ascontiguousarray(counts).reshape(-1))
            like = np.zeros(leaf.shape)
            axis = (slice(None),) + (None,) * (len(leaf.shape) - 1) if len(leaf.shape) > 2 else ()
            locs[where], scales[where] = (like + loc[axis]).ravel(), (like + scale[axis]).ravel()
    return locs, scales


def by_feature(leaf: Leaf, array: Float[np.ndarray, "num *shape"]) -> Float[np.ndarray, "num places features"]:
    """Numbers that have one location and scale along the last axis."""
    if len(leaf.shape) <= 1:
        return array.reshape(len(array), 1, leaf.size)
    if len(leaf.shape) == 2:
        return array
    return np.moveaxis(array.reshape(len(array), leaf.shape[0], -1), 1, 2)
