"""Stacked mixtures of Gaussians of many sizes, weighted by their predictions of held-out rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from numpyro_flows.density.mixture import GaussianMixture, clusters
from numpyro_flows.density.whitening import FULL_COVARIANCE
from numpyro_flows.training.logs import log_sum_exp
from numpyro_flows.training.one_thread import one_thread

_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
_FEW = 12  # components; larger mixtures need two rows or more for each parameter
_OF_ONE = (0.1, 1.0, 10.0, 1e6)  # times the coordinates: the prior of one Gaussian, from its covariance to variances
_WIDER = (3.0, 10.0)  # times the standard deviations of all rows: for tails
MOST_COMPONENTS = 128  # of a stack: training is compiled for as many before the mixtures are fitted
_MAX_DIM = 100  # covariances of more coordinates cost more than they gain
_FOLDS = 5
_LEAST_ROWS = 10
_HELD_OUT = 500  # rows that determine the shares; with fewer rows every fold is held out once
_FEW_ROWS = 2_000  # up to this number strong priors are tried
_MOST_ROWS, _WORK = (2_000, 5_000), 2e6  # rows to fit mixtures to, by their squared coordinates in all
_LEAST_SHARE = 0.02  # of a mixture that is kept
_STEPS = 300  # of expectation maximisation for the shares


class Member(NamedTuple):
    """A mixture, described by its number of components and the number of rows that its prior is worth.

    uncorrelated: whether there are so few rows that the prior is nearer to variances than to a covariance.
    wider: if not None, one Gaussian with standard deviations so many times as large.
    """

    num_components: int
    num_prior: float
    uncorrelated: bool
    wider: float | None = None


class Stack(NamedTuple):
    """Mixtures with their shares, and the mean log density of held-out rows."""

    members: tuple[Member, ...]
    shares: Float[np.ndarray, " members"]
    held_out: float

    @classmethod
    def of(
        cls,
        x: Float[np.ndarray, "num dim"],
        weights: Float[np.ndarray, " num"],
        rng: np.random.Generator,
        counts: tuple[int, ...] = _COUNTS,
    ) -> "Stack | None":
        """By cross-validation; None for very many coordinates or very few rows.

        Source: Smyth, Wolpert 1999, Machine Learning 36 (linearly combining density estimators via stacking).
        """
        if not cls.possible(x, weights):
            return None
        some = _some(weights, x.shape[1], rng)
        x, weights = x[some], weights[some]
        num, dim = x.shape
        fold = np.arange(num) % _FOLDS
        held_folds = range(int(np.clip(_HELD_OUT * _FOLDS / num, 1, _FOLDS)))
        priors = (0.1, 1.0, dim / 2, 2.0 * dim) if num <= _FEW_ROWS else (1.0, float(dim))
        largest = min(num / (2.0 * np.sqrt(dim)), max(_FEW, num / (1 + dim) / (2 + dim)))
        few = num < FULL_COVARIANCE * dim  # of more, a covariance may have whitened the rows, those held out as well
        members = [Member(1, prior * dim, few) for prior in (_OF_ONE if few else _OF_ONE[:1])]
        members += [
            Member(k, p, few) for k in counts if 1 < k <= largest for p in (priors if k <= _FEW else priors[:2])
        ]
        members += [Member(1, float(dim), few, wider) for wider in _WIDER]

        found: list[list[np.ndarray]] = []
        with one_thread():
            for f in held_folds:
                mixtures = _fitted(members, x[fold != f], weights[fold != f], rng)
                found.append([mixture.log_prob(x[fold == f]) for mixture in mixtures])
        scores = np.concatenate(found, axis=1)
        held_weights = np.concatenate([weights[fold == f] for f in held_folds])
        shares = _stacking_shares(scores, held_weights)
        kept = shares >= _LEAST_SHARE
        kept[np.argmax(shares)] = True
        by_share = np.argsort(-shares)
        kept[by_share[np.cumsum([members[i].num_components for i in by_share]) > MOST_COMPONENTS]] = False
        shares = _stacking_shares(scores[kept], held_weights)
        held_out = np.average(_log_prob(scores[kept], shares), weights=held_weights)
        return cls(tuple(m for m, keep in zip(members, kept) if keep), shares, float(held_out))

    @staticmethod
    def possible(x: Float[np.ndarray, "num dim"], weights: Float[np.ndarray, " num"]) -> bool:
        """Whether there are neither too many coordinates nor too few rows with weight."""
        return x.shape[1] <= _MAX_DIM and int(np.count_nonzero(weights)) >= _LEAST_ROWS

    def fit(
        self, x: Float[np.ndarray, "num dim"], weights: Float[np.ndarray, " num"], rng: np.random.Generator
    ) -> GaussianMixture:
        """All members fitted to rows, as one mixture."""
        some = _some(weights, x.shape[1], rng)
        with one_thread():
            return GaussianMixture.joined(_fitted(self.members, x[some], weights[some], rng), self.shares)


def _some(weights: Float[np.ndarray, " num"], dim: int, rng: np.random.Generator) -> Int[np.ndarray, " some"]:
    """Rows with weight, in random order; for large data as many as mixtures can be fitted to in about a second."""
    most = np.clip(_WORK / dim**2, *_MOST_ROWS)
    return rng.permutation(np.flatnonzero(weights))[: int(most)]


def _fitted(
    members: Sequence[Member],
    x: Float[np.ndarray, "num dim"],
    weights: Float[np.ndarray, " num"],
    rng: np.random.Generator,
) -> list[GaussianMixture]:
    """The mixture of each member, from its own clusters: a stack gains if its members differ."""
    mixtures = [
        GaussianMixture.of(x, weights, clusters(x, m.num_components, rng), m.num_prior, uncorrelated=m.uncorrelated)
        for m in members
    ]
    return [mixture if m.wider is None else mixture.wider(m.wider) for m, mixture in zip(members, mixtures)]


def _log_prob(scores: Float[np.ndarray, "members num"], shares: Float[np.ndarray, " members"]) -> np.ndarray:
    return log_sum_exp(scores + np.log(np.maximum(shares, np.finfo(float).tiny))[:, None], 0)


def _stacking_shares(
    scores: Float[np.ndarray, "members num"], weights: Float[np.ndarray, " num"]
) -> Float[np.ndarray, " members"]:
    """The shares under which the rows have the largest likelihood, by expectation maximisation."""
    shares = np.full(len(scores), 1.0 / len(scores))
    for _ in range(_STEPS):
        responsible = shares[:, None] * np.exp(scores - _log_prob(scores, shares))
        shares = responsible @ weights / weights.sum()
    return shares
