"""A joint distribution of discrete values, angles and real numbers, by the chain rule."""

import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar, ForwardRef, Union

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray
from numpyro.distributions import constraints

from numpyro_flows.arguments import as_array, require_key, require_shape_of_sample
from numpyro_flows.bijections.circular import wrap
from numpyro_flows.files.rules import InFiles
from numpyro_flows.files.tree import load_tree, save_tree
from numpyro_flows.modeling._numpyro import validates
from numpyro_flows.modeling.columns import Columns
from numpyro_flows.modeling.discrete import DiscreteFactor
from numpyro_flows.modeling.distributions import FlowDistribution


class MixedDistribution(dist.Distribution, InFiles):
    """`p(discrete) p(angles | discrete) p(linear | discrete, angles)`: an exact density of columns of several kinds.

    `fit_density` makes one if a support is discrete or `constraints.circular`. Each factor sees codes of the columns
    before it, and then the condition. Categories are coded as 0 and 1 for each level, counts as standardised
    `log(1 + k)`, and angles as cosine and sine. `log_prob` is a density over the real columns and the angles, and a
    probability over the discrete ones: it integrates and sums to 1.

    Draws have angles in `[-pi, pi)`; `log_prob` wraps other angles into it. Outside the supports of the other columns
    the density is 0. For several sites, or if the data were a DataFrame, `sample` returns a dict in which discrete
    sites are integers, and `log_prob` takes a dict or a DataFrame. `pandas.DataFrame(draws)` makes a table of such a
    dict.

    Args:
        columns: where the values of each kind are in an event.
        discrete: the factor of the discrete columns; None without them.
        angles: the flow of the angles, given the discrete columns' codes and the condition; None without them.
        linear: the flow of the real columns, given the codes of all others and the condition; None without them.
        condition: array `(*batch, cond_dim)`; its batch shape becomes one of the distribution.
        cond_dim: length of the condition, 0 without one.

    Attributes:
        fit: how `fit_density` fitted it, a `MixedFit`; None for other distributions.

    Raises:
        ValueError: if the condition has the wrong shape.

    Example:
        >>> import jax, numpy as np  # doctest: +SLOW
        >>> from numpyro.distributions import constraints
        >>> from numpyro_flows import fit_density
        >>> rng = np.random.default_rng(0)
        >>> data = {"visits": rng.poisson(3.0, 500), "hour": rng.vonmises(0.0, 3.0, 500), "spent": rng.normal(size=500)}
        >>> support = {"visits": constraints.nonnegative_integer, "hour": constraints.circular}
        >>> mixed = fit_density(jax.random.key(0), data, support=support, num_steps=50, progress_bar=False)
        >>> draws = mixed.sample(jax.random.key(1), (4,))
        >>> mixed.log_prob(draws).shape
        (4,)
    """

    FILE_KINDS: ClassVar = {
        "columns": Columns,
        "discrete": DiscreteFactor | None,
        "angles": FlowDistribution | None,
        "linear": FlowDistribution | None,
        "condition": Array | None,
        "cond_dim": int,
        "fit": Union[ForwardRef("numpyro_flows.MixedFit"), None],  # noqa: UP007
    }
    pytree_data_fields = ("discrete", "angles", "linear", "condition")
    pytree_aux_fields = ("columns", "cond_dim", "fit")

    def __init__(
        self,
        columns: Columns,
        discrete: DiscreteFactor | None,
        angles: FlowDistribution | None,
        linear: FlowDistribution | None,
        condition: ArrayLike | None = None,
        *,
        cond_dim: int = 0,
        validate_args: bool | None = None,
    ):
        self.columns, self.discrete, self.angles, self.linear = columns, discrete, angles, linear
        self.cond_dim = cond_dim
        self.condition: Array | None = None if condition is None else as_array(condition, "condition")
        batch = () if self.condition is None else self.condition.shape[:-1]
        if self.condition is not None and (cond_dim == 0 or self.condition.shape[-1:] != (cond_dim,)):
            expected = f"of shape (*batch, {cond_dim})" if cond_dim else "None as the distribution has no condition"
            raise ValueError(f"condition expected {expected}, got an array of shape {self.condition.shape}")
        self.fit: Any = None  # or a MixedFit, whose file is above this one
        super().__init__(batch, columns.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return MixedSupport(self)

    @property
    def sites(self) -> dict[str, tuple[int, ...]] | None:
        """Shapes of the sites by name; None if an event is an array."""
        return None if self.columns.sites is None else dict(self.columns.sites)

    def given(self, condition: ArrayLike) -> "MixedDistribution":
        """The distribution under another condition, of shape `(*batch, cond_dim)`.

        Raises:
            ValueError: if the distribution has no condition, or the condition has another shape.
        """
        parts = self.columns, self.discrete, self.angles, self.linear
        other = MixedDistribution(*parts, condition, cond_dim=self.cond_dim, validate_args=validates(self))
        other.fit = self.fit
        return other

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.columns.sites is not None:
            raise TypeError("expected a distribution of arrays, got one of sites: fit an array to use numpyro.sample")
        return super().__call__(*args, **kwargs)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Any:  # pyright: ignore
        """Draws of shape `(*sample_shape, *batch, *event)`; for several sites a dict of arrays.

        Raises:
            ValueError: if the distribution needs a condition and has none.
        """
        require_key(key, "key")
        require_shape_of_sample(sample_shape)
        shape = (*sample_shape, *self.batch_shape)
        condition = jnp.broadcast_to(self._known_condition(), (*shape, self.cond_dim))
        keys = jax.random.split(key, 3)
        discrete = jnp.zeros((*shape, 0))
        if self.discrete is not None:
            num = math.prod(shape)
            many = jax.vmap(self.discrete.sample)
            flat = many(jax.random.split(keys[0], num), condition.reshape(num, self.cond_dim))
            discrete = flat.reshape(*shape, len(self.columns.discrete))
        angles, codes = jnp.zeros((*shape, 0)), self._codes(discrete)
        if self.angles is not None:
            angles = _given(self.angles, codes, condition).sample(keys[1], shape if self._is_free(self.angles) else ())
        linear = jnp.zeros((*shape, 0))
        if self.linear is not None:
            flow = _given(self.linear, codes, jnp.cos(angles), jnp.sin(angles), condition)
            linear = flow.sample(keys[2], shape if self._is_free(self.linear) else ())
        return self.columns.unpack(self.columns.join(discrete, angles, linear))

    def log_prob(self, value: ArrayLike | Mapping[str, ArrayLike]) -> Float[Array, "*batch"]:  # pyright: ignore
        """Log density, of shape `(*sample, *batch)`, of an array `(*sample, *batch, *event)` or a dict of sites."""
        return sum(self.log_prob_parts(value).values(), jnp.zeros(()))

    def log_prob_parts(self, value: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, Float[Array, "*batch"]]:
        """The terms of `log_prob` by name: "discrete", "angles" and "linear", as far as they exist."""
        vector = self.columns.pack(value)
        shape = jnp.broadcast_shapes(vector.shape[:-1], self.batch_shape)
        vector = jnp.broadcast_to(vector, (*shape, self.columns.size))
        condition = jnp.broadcast_to(self._known_condition(), (*shape, self.cond_dim))
        discrete, angles, linear = self._split(vector)
        parts = {}
        if self.discrete is not None:
            num = math.prod(shape)
            flat = discrete.reshape(num, discrete.shape[-1]), condition.reshape(num, self.cond_dim)
            parts["discrete"] = jax.vmap(self.discrete.log_prob)(*flat).reshape(shape)
            discrete = self.discrete.feasible(discrete)
        codes = self._codes(discrete)
        if self.angles is not None:
            parts["angles"] = jnp.asarray(_given(self.angles, codes, condition).log_prob(angles))
        if self.linear is not None:
            flow = _given(self.linear, codes, jnp.cos(angles), jnp.sin(angles), condition)
            parts["linear"] = jnp.asarray(flow.log_prob(linear))
        return parts

    def _split(self, vector: Float[Array, "*batch size"]) -> tuple[Array, Array, Array]:
        places = self.columns.discrete, self.columns.angles, self.columns.linear
        discrete, angles, linear = (vector[..., np.asarray(some, int)] for some in places)
        return discrete, wrap(angles), linear

    def _codes(self, discrete: Array) -> Array:
        return discrete if self.discrete is None else self.discrete.encode(discrete)

    def _known_condition(self) -> Array:
        if self.condition is None and self.cond_dim:
            raise ValueError(
                f"expected a condition of shape (*batch, {self.cond_dim}), got none: call `.given(condition)` first"
            )
        return jnp.zeros(0) if self.condition is None else self.condition

    @staticmethod
    def _is_free(flow: FlowDistribution) -> bool:
        """Whether a factor depends on nothing, so that its draws have no batch shape of their own."""
        return flow.bijection.cond_shape is None

    def save(self, path: str | os.PathLike) -> None:
        """Write the distribution to one file: arrays, settings and `fit`, but no code.

        Raises:
            TypeError: as `FlowDistribution.save`.
        """
        save_tree(path, "MixedDistribution", self)

    @classmethod
    def load(cls, path: str | os.PathLike, *, trusted: tuple[type, ...] = ()) -> "MixedDistribution":
        """Load a distribution that `save` wrote. Arguments and errors are those of `FlowDistribution.load`."""
        return load_tree(path, "MixedDistribution", MixedDistribution, trusted=trusted)

    @classmethod
    def from_file_fields(cls, fields: dict[str, Any]) -> "MixedDistribution":
        fit = fields.pop("fit")
        mixed = cls(**fields)
        mixed.fit = fit
        some = mixed if mixed.condition is not None or not mixed.cond_dim else mixed.given(jnp.zeros(mixed.cond_dim))
        jax.eval_shape(lambda key: some.log_prob(some.sample(key)), jax.random.key(0))  # whether the parts fit together
        return mixed


class MixedSupport(constraints.Constraint):
    """The events of a `MixedDistribution`, whose angles are in `[-pi, pi)`."""

    is_discrete = True  # for NumPyro, which would otherwise treat it as a continuous latent site

    def __init__(self, distribution: MixedDistribution):
        self._distribution = distribution

    @property
    def event_dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self._distribution.event_shape)

    def __call__(self, x: ArrayLike) -> Bool[Array, "*batch"]:  # pyright: ignore
        mixed = self._distribution
        vector = mixed.columns.pack(jnp.asarray(x))
        discrete, angles, linear = mixed._split(vector)
        inside = (vector[..., np.asarray(mixed.columns.angles, int)] == angles).all(-1)
        if mixed.discrete is not None:
            inside = inside & mixed.discrete.inside(discrete).all(-1)
        if mixed.linear is not None:
            inside = inside & jnp.asarray(mixed.linear.vector.support(linear))
        return inside

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self._distribution,), (("_distribution",), {})

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        return isinstance(other, MixedSupport) and self._distribution.columns == other._distribution.columns


def _given(flow: FlowDistribution, *seen: Float[Array, "*batch _"]) -> FlowDistribution:
    """The distribution of arrays by a flow, given all earlier columns and the condition."""
    flow = flow if flow.sites is None else flow.vector
    return flow if flow.bijection.cond_shape is None else flow.given(jnp.concatenate(seen, axis=-1))
