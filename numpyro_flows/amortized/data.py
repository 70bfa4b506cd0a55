"""Data sets as conditions of a flow: as they are, or as sets of observations with a mask."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from numpyro_flows.arguments import as_array, as_numbers, described, require_all, require_counts
from numpyro_flows.embeddings import SetEmbedding

_WIDTH = 32  # of the encoder of sets: half the default, as training on sets of hundreds costs what the encoder does


class DataSets(NamedTuple):
    """How data sets of some sites become conditions.

    shapes: of each observed site, as the model draws it.
    sizes: least and most observations, along the first axis of every site; None where data sets have one shape.
    flat: whether a site is one row of numbers, as there is no encoder.
    """

    shapes: dict[str, tuple[int, ...]]
    sizes: tuple[int, int] | None
    flat: bool

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]], sizes: Any, *, encoded: bool) -> "DataSets":
        """Raises: ValueError, where sizes are no two counts, or more than the model draws."""
        if sizes is None:
            return cls(shapes, None, flat=not encoded)
        if np.shape(sizes) != (2,):
            raise ValueError(f"sizes expected the least and the most observations of a data set, got {sizes!r}")
        least, most = (int(size) for size in sizes)
        require_counts(1, most, **{"the first of sizes": least})
        drawn = {name: shape[:1] for name, shape in shapes.items()}
        if set(drawn.values()) != {(most,)}:
            raise ValueError(
                f"sizes expected as many observations at most as the model draws along the first axis of each site, "
                f"got {most} and sites of the shapes {shapes}"
            )
        return cls(shapes, (least, most), flat=False)

    @property
    def num_features(self) -> int:
        """Numbers of one observation."""
        return sum(int(np.prod(shape[1:])) for shape in self.shapes.values())

    def encoder(self, rng_key: PRNGKeyArray, out_dim: int) -> SetEmbedding | None:
        """The network of sets; None where data sets have one shape, and are one vector."""
        return None if self.sizes is None else SetEmbedding(rng_key, self.num_features, out_dim, width=_WIDTH)

    def drawn(self, data: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
        """Conditions of many drawn data sets; of sets of different sizes the first few observations each."""
        if self.sizes is None:
            return {name: self._shaped(np.asarray(values, float), 1) for name, values in data.items()}
        least, most = self.sizes
        num = len(next(iter(data.values())))
        # as many of 5 to 50 as of 50 to 500
        size = np.exp(rng.uniform(np.log(least), np.log(most + 1), num)).astype(int)
        return {"values": self._features(data, most), "mask": np.arange(most) < size[:, None]}

    def condition(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """The condition of one data set.

        Raises:
            ValueError: where sites are missing, unknown or of other shapes, or observations too few or too many.
        """
        if not hasattr(data, "keys") or set(data) != set(self.shapes):
            got = list(data) if hasattr(data, "keys") else described(data)
            raise ValueError(f"data expected a dict of the observed sites {list(self.shapes)}, got {got}")
        arrays = {name: as_array(data[name], f"data {name!r}") for name in self.shapes}
        if self.sizes is None:
            for name, shape in self.shapes.items():
                if arrays[name].shape != shape:
                    raise ValueError(f"data {name!r} expected the shape {shape}, got {arrays[name].shape}")
            return {name: self._shaped(array.astype(float), 0) for name, array in arrays.items()}
        least, most = self.sizes
        nums = {array.shape[:1] for array in arrays.values()}
        num = next(iter(nums))
        if len(nums) != 1 or not num or not least <= num[0] <= most:
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(f"data expected {least} to {most} observations of each site, got the shapes {shapes}")
        for name, shape in self.shapes.items():
            if arrays[name].shape[1:] != shape[1:]:
                raise ValueError(f"data {name!r} expected the shape (num, *{shape[1:]}), got {arrays[name].shape}")
        filled = {
            name: jnp.pad(array.astype(float), [(0, most - num[0])] + [(0, 0)] * (array.ndim - 1))
            for name, array in arrays.items()
        }
        features = self._features(jax.tree.map(lambda array: array[None], filled), most)[0]
        return {"values": features, "mask": jnp.arange(most) < num[0]}

    def many(self, data: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Many data sets along a first axis, as arrays.

        Raises:
            ValueError: as `condition`, and where there is no such axis of one length.
        """
        if not hasattr(data, "keys"):
            raise ValueError(f"data expected a dict of the observed sites {list(self.shapes)}, got {described(data)}")
        arrays = {name: as_numbers(values, f"data {name!r}") for name, values in data.items()}
        nums = {values.shape[:1] for values in arrays.values()}
        if len(nums) != 1 or nums & {(), (0,)}:
            shapes = {name: values.shape for name, values in arrays.items()}
            raise ValueError(f"data expected sites with one number of data sets, got the shapes {shapes}")
        self.condition({name: values[0] for name, values in arrays.items()})
        for name, values in arrays.items():
            finite = np.isfinite(values).reshape(len(values), -1).all(1)
            require_all(finite, f"data {name!r} expected finite numbers, got others", "data sets")
        return arrays

    def _shaped(self, array: Any, axis: int) -> Any:
        return array.reshape(*array.shape[:axis], -1) if self.flat else array

    def _features(self, data: dict[str, Any], most: int) -> Any:
        """Arrays `(num, most, features)`, of all sites one after the other."""
        parts = [data[name].reshape(len(data[name]), most, -1) for name in self.shapes]
        as_one = np.concatenate if isinstance(parts[0], np.ndarray) else jnp.concatenate
        return as_one(parts, axis=2).astype(float)
