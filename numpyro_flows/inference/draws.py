"""Draws of a posterior in chains."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Chains(NamedTuple):
    """Unconstrained draws with their log densities: those of Markov chains, or independent draws split into chains."""

    x: Float[np.ndarray, "chains draws dim"]
    log_density: Float[np.ndarray, "chains draws"]

    @classmethod
    def split(cls, x: Float[np.ndarray, "draws dim"], log_density: Float[np.ndarray, " draws"], num: int) -> "Chains":
        """Independent draws as so many chains; the remainder is dropped."""
        each = len(x) // num
        return cls(x[: num * each].reshape(num, each, -1), log_density[: num * each].reshape(num, each))

    @property
    def flat(self) -> tuple[Float[np.ndarray, "draws dim"], Float[np.ndarray, " draws"]]:
        """All draws and their log densities, chain by chain."""
        return self.x.reshape(-1, self.x.shape[2]), self.log_density.ravel()

    def with_normals(self, free: Bool[np.ndarray, " whole"], rng: np.random.Generator) -> "Chains":
        """The chains with the free coordinates, which are standard normal."""
        x = rng.standard_normal((*self.log_density.shape, free.size))
        x[:, :, ~free] = self.x
        normals = -0.5 * (x[:, :, free] ** 2 + np.log(2 * np.pi)).sum(2)
        return Chains(x, self.log_density + normals)

    def halved(self) -> "Chains":
        """Every second draw."""
        return Chains(self.x[:, 1::2], self.log_density[:, 1::2])

    def later(self) -> "Chains":
        """The second half of each chain, which no longer depends on the starts."""
        first = self.x.shape[1] // 2
        return Chains(self.x[:, first:], self.log_density[:, first:])

    def followed_by(self, other: "Chains") -> "Chains":
        return Chains(*(np.concatenate(both, axis=1) for both in zip(self, other)))
