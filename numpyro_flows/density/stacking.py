"""Mixtures of Gaussians of many sizes, stacked: weighted by how well each predicts rows that it has not seen."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from numpyro_flows.density.mixture import GaussianMixture, clusters

_COUNTS = (1, 2, 3, 4, 6, 8, 12)
_WIDER = (3.0, 10.0)  # times the standard deviations of all rows: for tails
_MAX_DIM = 100  # covariances of more coordinates cost more than they tell
_FOLDS = 5
_FEW_ROWS, _CHEAP = 2_000, 1e6  # rows, and rows times squared coordinates, up to which every fold is held out once
_MOST_ROWS = 5_000  # to fit mixtures to
_LEAST_SHARE = 0.02  # of a mixture that is kept
_STEPS = 300  # of expectation maximisation for the shares


class Member(NamedTuple):
    """A mixture by what it is fitted with: its number of components, and the rows that its prior is worth.

    wider: where not None, one Gaussian with standard deviations so many times as large.
    """

    num_components: int
    num_prior: float
    wider: float | None = None

    def fit(
        self, x: Float[np.ndarray, "num dim"], weights: Float[np.ndarray, " num"], rng: np.random.Generator
    ) -> GaussianMixture:
        labels = np.zeros(len(x), int) if self.num_components == 1 else clusters(x, self.num_components, rng)
        mixture = GaussianMixture.of(x, weights, labels, self.num_prior)
        return mixture if self.wider is None else mixture.wider(self.wider)


class Stack(NamedTuple):
    """Mixtures with their shares, and the mean log density that rows had which were held out."""

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
        """By cross-validation; None for very many coordinates.

        Source: Smyth, Wolpert 1999, Machine Learning 36 (linearly combining density estimators via stacking).
        """
        if x.shape[1] > _MAX_DIM:
            return None
        some = rng.permutation(len(x))[:_MOST_ROWS]
        x, weights = x[some], weights[some]
        num, dim = x.shape
        fold = np.arange(num) % _FOLDS
        cheap = num <= _FEW_ROWS and num * dim**2 <= _CHEAP
        held_folds = range(_FOLDS if cheap else 1)
        priors = (0.1, 1.0, dim / 2, 2.0 * dim) if cheap else (1.0, float(dim))
        largest = num / (2.0 * np.sqrt(dim))
        members = [Member(1, 1.0)]
        members += [Member(k, prior) for k in counts if 1 < k <= largest for prior in priors]
        members += [Member(1, 1.0, wider) for wider in _WIDER]
        scores = np.concatenate(
            [
                [member.fit(x[fold != f], weights[fold != f], rng).log_prob(x[fold == f]) for member in members]
                for f in held_folds
            ],
            axis=1,
        )
        held_weights = np.concatenate([weights[fold == f] for f in held_folds])
        shares = _stacking_shares(scores, held_weights)
        kept = shares >= _LEAST_SHARE
        kept[np.argmax(shares)] = True
        shares = _stacking_shares(scores[kept], held_weights)
        held_out = np.average(_log_prob(scores[kept], shares), weights=held_weights)
        return cls(tuple(m for m, keep in zip(members, kept) if keep), shares, float(held_out))

    def fit(
        self, x: Float[np.ndarray, "num dim"], weights: Float[np.ndarray, " num"], rng: np.random.Generator
    ) -> GaussianMixture:
        """All members fitted to rows, as one mixture."""
        some = rng.permutation(len(x))[:_MOST_ROWS]
        return GaussianMixture.joined([member.fit(x[some], weights[some], rng) for member in self.members], self.shares)


def _log_prob(scores: Float[np.ndarray, "members num"], shares: Float[np.ndarray, " members"]) -> np.ndarray:
    return logsumexp(scores + np.log(np.maximum(shares, np.finfo(float).tiny))[:, None], axis=0)


def _stacking_shares(
    scores: Float[np.ndarray, "members num"], weights: Float[np.ndarray, " num"]
) -> Float[np.ndarray, " members"]:
    """The shares under which the rows have the largest likelihood, by expectation maximisation."""
    shares = np.full(len(scores), 1.0 / len(scores))
    for _ in range(_STEPS):
        responsible = shares[:, None] * np.exp(scores - _log_prob(scores, shares))
        shares = responsible @ weights / weights.sum()
    return shares
