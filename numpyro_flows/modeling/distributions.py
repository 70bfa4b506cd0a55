"""A flow as a NumPyro distribution."""

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, ForwardRef, Union

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from numpyro_flows.arguments import as_array, described, require_key, require_shape_of_sample
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.bijections.embedded import layout_of
from numpyro_flows.files.rules import InFiles
from numpyro_flows.files.tree import load_tree, save_tree
from numpyro_flows.modeling._numpyro import DISTRIBUTION_STATE, register_in_scan, validates, warn_outside_support
from numpyro_flows.modeling.marginals import WithMarginals
from numpyro_flows.modeling.scoring import LogProbParts, parts_of_draw, parts_of_value
from numpyro_flows.modeling.sites import Sites, table_as_sites
from numpyro_flows.modeling.transforms import Condition, FlowTransform
from numpyro_flows.modeling.trees import Split, leading_shape, over_leading_axis


class FlowDistribution(WithMarginals, dist.TransformedDistribution, InFiles):
    """The distribution of `y = f(x | condition)` for `x ~ base_dist`, with density `p(f^-1(y)) |det dx/dy|`.

    Use it for sampling, for scoring, and in `numpyro.sample` as a prior or a likelihood. Gradients flow through values,
    parameters and the condition. `log_prob` takes one inverse pass. The density of a draw from
    `sample_with_intermediates` needs no pass. `marginal(columns)` and `condition_on(values)` give the distribution of
    some columns or sites, by themselves and given others.

    The density is 0 outside the support, on its boundary and at values that are not finite. The object is a pytree. Its
    leaves are the arrays that it is made with. `jax.vmap` and NumPyro's `scan` put axes in front of them; sampling and
    scoring then map over these axes.

    If `constrain` maps to several sites, `sample` returns a dict of sites and `log_prob` takes one. NumPyro needs such
    a distribution as one event, the vector of all sites' values: this is `vector`. `sample_sites` turns it into sites
    of a model.

    Args:
        bijection: a bijection of this library or of FlowJAX.
        base_dist: a NumPyro distribution with the bijection's event shape; standard normal by default.
        condition: array of shape `(*batch, *cond_shape)`; its batch shape becomes one of the distribution. A bijection
            with an embedding takes an array or a dict of arrays. If a conditional bijection gets no condition, add one
            later with `given(condition)`.
        constrain: NumPyro transform of the flow's real vectors onto the support of the events, for example
            `biject_to(constraints.positive)`, or `SitesTransform`.

    Attributes:
        fit: how `fit_density` fitted it, or `few_steps` distilled it; None for other distributions.

    Raises:
        TypeError: if `bijection` is not a bijection.
        ValueError: if the condition or the base distribution has the wrong shape.

    Example:
        >>> import jax
        >>> from numpyro_flows import FlowDistribution, flows
        >>> flow = FlowDistribution(flows.realnvp(jax.random.key(0), 2))
        >>> flow.log_prob(flow.sample(jax.random.key(1), (5,))).shape
        (5,)
    """

    FILE_KINDS: ClassVar = {
        "bijection": AbstractBijection,
        "base_dist": dist.Distribution,
        "condition": Array | dict | None,
        "constrain": Transform | None,
        "fit": Union[ForwardRef("numpyro_flows.DensityFit"), ForwardRef("numpyro_flows.FewStepsFit"), None],  # noqa: UP007
        "is_vector": bool,
    }

    def __init__(
        self,
        bijection: AbstractBijection,
        base_dist: dist.Distribution | None = None,
        condition: Condition | None = None,
        *,
        constrain: Transform | None = None,
        validate_args: bool | None = None,
    ):
        transform = FlowTransform(bijection, condition)
        event_shape = tuple(bijection.shape)
        if not (base_dist is None or isinstance(base_dist, dist.Distribution)):
            raise TypeError(f"base_dist expected a NumPyro distribution, got {described(base_dist)}")
        if not (constrain is None or isinstance(constrain, Transform)):
            got = described(constrain)
            raise TypeError(f"constrain expected a NumPyro transform, for example biject_to(constraint), got {got}")
        base = base_dist or dist.Normal(jnp.zeros(event_shape), 1.0).to_event(len(event_shape))
        if base.event_shape != event_shape:
            raise ValueError(f"expected a base distribution with event shape {event_shape}, got {base.event_shape}")
        self._flow, self._around = transform, Split((base, constrain))
        self._is_vector = False
        self.fit: Any = None  # or a DensityFit or FewStepsFit, whose files are above this one
        self._own_batch_shape = self._merged.batch_shape
        dist.Distribution.__init__(self, self._own_batch_shape, self._merged.event_shape, validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Not supported: NumPyro's rule would be wrong, because a flow's shapes depend on its bijection."""
        raise NotImplementedError("make the flow, then ask for its batch_shape and event_shape")

    def __repr__(self) -> str:
        """The shape and support of the density, its base and, if it was fitted, the held-out score of what was kept."""
        batch = f"batch_shape={self.batch_shape}, " if self.batch_shape else ""
        events = f"event_shape={self.event_shape}" if self.sites is None else f"sites={list(self.sites.shapes)}"
        fitted = "" if self.fit is None else f", {self.fit.brief}"
        return f"FlowDistribution({batch}{events}, base={type(self.base_dist).__name__}{fitted})"

    @property
    def bijection(self) -> AbstractBijection:
        return self._flow.bijection

    @property
    def condition(self) -> Any:
        return self._flow.condition

    @property
    def constrain(self) -> Transform | None:
        return self._around.tree[1]

    @property
    def base_dist(self) -> dist.Distribution:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base as NumPyro sees it: if the base is a transformed distribution, the base of that."""
        return self._merged.base_dist

    @property
    def transforms(self) -> list[Transform]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The transforms as NumPyro sees them: those of the base, the flow, and `constrain` if there is one."""
        return self._merged.transforms

    @property
    def support(self) -> constraints.Constraint:
        codomain = (self.constrain or self._flow).codomain
        num_more = len(self.event_shape) - codomain.event_dim
        return constraints.independent(codomain, num_more) if num_more else codomain

    @property
    def sites(self) -> Sites | None:
        """Names, shapes and supports of the sites; None if an event is an array."""
        return support if isinstance(support := self.support, Sites) else None

    @property
    def vector(self) -> "FlowDistribution":
        """The same distribution with arrays as events: the vectors of the sites' values, as NumPyro expects them."""
        return self._but(self.condition, is_vector=True)

    @property
    def _single_base(self) -> dist.Distribution:
        return self._around.tree[0]

    @cached_property
    def _merged(self) -> dist.TransformedDistribution:
        base, constrain = self._around.tree
        transforms: list[Transform] = [self._flow] if constrain is None else [self._flow, constrain]
        return dist.TransformedDistribution(base, transforms)

    def _but(self, condition: Condition | None, *, is_vector: bool) -> "FlowDistribution":
        base, constrain = self._around.tree
        other = FlowDistribution(self.bijection, base, condition, constrain=constrain, validate_args=validates(self))
        other._is_vector, other.fit = is_vector, self.fit
        return other

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self._flow, self._around), tuple(getattr(self, name) for name in _STRUCTURE)

    @classmethod
    def tree_unflatten(cls, aux_data: Any, params: Any) -> "FlowDistribution":
        self = cls.__new__(cls)
        self._flow, self._around = params
        for name, value in zip(_STRUCTURE, aux_data):
            setattr(self, name, value)
        return self

    def given(self, condition: Condition) -> "FlowDistribution":
        """The distribution under another condition, of shape `(*batch, *cond_shape)`.

        A flow with an embedding takes an array or a dict of arrays, each `(*batch, *shape)`, with the keys and shapes
        that it was fitted with.

        Raises:
            ValueError: if the bijection has no condition, or the condition has other keys or shapes.
        """
        if self.bijection.cond_shape is None:
            raise ValueError("expected a conditional flow, got one without condition")
        return self._but(condition, is_vector=self._is_vector)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Any:  # pyright: ignore
        """Draws of shape `(*sample_shape, *batch, *event)`; for several sites a dict of arrays."""
        require_key(key, "key")
        require_shape_of_sample(sample_shape)
        value = self.sample_with_intermediates(key, sample_shape)[0]
        return value if self.sites is None or self._is_vector else self.sites.unpack(value)

    def sample_with_intermediates(
        self, key: PRNGKeyArray | None, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Any, list[Any]]:
        """Draws and the intermediate results of the transforms, from which `log_prob` gets their density."""
        if not self._leading_shape:
            return super().sample_with_intermediates(key, sample_shape)
        return self._over_leading(
            lambda one, key: one.sample_with_intermediates(key, sample_shape),
            jax.random.split(jnp.asarray(key), self._leading_shape[0]),
            axes=(0, len(sample_shape)),
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.sites is not None and not self._is_vector:
            raise TypeError("expected a distribution of arrays, got one of sites: use sample_sites(name, flow)")
        return super().__call__(*args, **kwargs)

    def log_prob(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, value: ArrayLike | Mapping[str, ArrayLike], intermediates: list[Any] | None = None
    ) -> Float[Array, "*batch"]:
        """Log density, of shape `(*sample, *batch)`, of an array `(*sample, *batch, *event)` or a dict of sites."""
        value = self._packed(value)
        if validates(self) and not self._leading_shape and not isinstance(value, Tracer):
            warn_outside_support(self, value)
        base, log_det = self._parts(value, intermediates)
        return base + log_det

    def log_prob_parts(self, value: ArrayLike | Mapping[str, ArrayLike]) -> LogProbParts:
        """The two terms of `log_prob`: the log density of the base, and the log-determinant.

        For a standard normal base the first term has the mean `-dim / 2 (1 + log 2 pi)`. If it is far from this mean,
        the flow does not map the data to its base.
        """
        return self._parts(self._packed(value), None)

    def _packed(self, value: ArrayLike | Mapping[str, ArrayLike]) -> Array:
        value = value if self.sites is None else table_as_sites(value)
        if not isinstance(value, Mapping):
            return as_array(value, "value")
        if self.sites is None:
            raise ValueError(f"expected an array of shape (..., *{self.event_shape}), got a dict of {list(value)}")
        return self.sites.pack(value)

    def _parts(self, y: Array, intermediates: list[Any] | None) -> LogProbParts:
        if self._leading_shape:
            axis = y.ndim - len(self.event_shape) - len(self._own_batch_shape) - len(self._leading_shape)
            y, axis = jnp.reshape(y, (1,) * max(-axis, 0) + y.shape), max(axis, 0)
            size = max(self._leading_shape[0], y.shape[axis])
            y = jnp.broadcast_to(y, (*y.shape[:axis], size, *y.shape[axis + 1 :]))
            return self._over_leading(lambda one, args: one._parts(*args), (y, intermediates), axes=(axis, axis))
        base, constrain = self._around.tree
        if intermediates:
            return parts_of_draw(base, self._flow, constrain, y, intermediates)
        return parts_of_value(base, self._flow, constrain, y, len(self.event_shape))

    @property
    def _leading_shape(self) -> tuple[int, ...]:
        return leading_shape(*self._arrays_and_axes)

    @property
    def _arrays_and_axes(self) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        flow, around = self._flow.parts, self._around
        return (*flow.arrays, *around.arrays), (*flow.num_axes, *around.num_axes)

    def _over_leading(self, method: Callable[..., Any], args: Any, axes: tuple[int, int]) -> Any:
        """`method(self, args)` for every index of the first leading axis; `axes` is its place in `args`."""
        structure = jax.tree.structure(self)
        return over_leading_axis(
            lambda arrays, args: method(jax.tree.unflatten(structure, arrays), args), *self._arrays_and_axes, args, axes
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write the distribution to one file: arrays, settings and `fit`, but no code.

        An interrupted call leaves the old file as it was.

        Raises:
            TypeError: if the flow contains a function of your own, or anything that is neither an array, a plain value,
                an Equinox module nor one of NumPyro's distributions, transforms and constraints.
        """
        save_tree(path, "FlowDistribution", self)

    @classmethod
    def load(cls, path: str | os.PathLike, *, trusted: tuple[type, ...] = ()) -> "FlowDistribution":
        """Load a distribution that `save` wrote. No code runs, so you may load a file from someone you do not know.

        Args:
            path: the file.
            trusted: your own classes, or FlowJAX's, that are in the flow: `trusted=(MyBijection, MyNetwork)`. Other
                classes in a file must be those of this library or of NumPyro.

        Raises:
            TypeError: if `trusted` is not a tuple of classes.
            ValueError: if anything is wrong with the file. The error says what is wrong, and where in the flow.
        """
        return load_tree(path, "FlowDistribution", FlowDistribution, trusted=trusted)

    def file_fields(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("bijection", "condition", "constrain", "fit")}
        return own | {"base_dist": self._single_base, "is_vector": self._is_vector}

    @classmethod
    def from_file_fields(cls, fields: dict[str, Any]) -> "FlowDistribution":
        names = ("bijection", "base_dist", "condition", "constrain")
        flow = cls(**{name: fields[name] for name in names})
        flow.fit, flow._is_vector = fields["fit"], fields["is_vector"]
        _require_coherent(flow)
        return flow


def _require_coherent(flow: FlowDistribution) -> None:
    """Check shapes by abstract draws and scores, which compute nothing: one event of the flow, two draws of its base.

    A wrong part of the base may broadcast with draws of one number, but not with those of the next. Tracing the flow
    itself takes seconds if it is inverted numerically, and its parts are checked elsewhere.

    Raises:
        Exception: if the shapes of the flow's parts do not fit together.
    """
    base = flow._single_base
    least = 1 + max((1, *base.shape()))
    told = [] if isinstance(base, FlowDistribution) else [(base, (least,)), (base, (least + 1,))]

    layout = layout_of(flow.bijection)

    def draw_and_score(condition: Array | None) -> list[tuple[Array, Array]]:
        structured = condition if condition is None or layout is None else layout.unpack(condition)
        one = (flow if structured is None else flow.given(structured)).vector
        return [_drawn_and_scored(*pair) for pair in [(one, ()), *told]]

    condition = None
    if flow.bijection.cond_shape is not None and flow.condition is None:
        condition = jax.ShapeDtypeStruct(flow.bijection.cond_shape, jnp.result_type(float))
    found = jax.eval_shape(draw_and_score, condition)
    expected = [(which.shape(shape), shape + which.batch_shape) for which, shape in [(flow, ()), *told]]
    if (got := [(drawn.shape, scored.shape) for drawn, scored in found]) != expected:
        raise ValueError(f"expected draws and their densities of shapes {expected}, got {got}")


def _drawn_and_scored(distribution: dist.Distribution, shape: tuple[int, ...]) -> tuple[Array, Array]:
    try:
        drawn = jnp.asarray(distribution.sample(jax.random.key(0), shape))
    except NotImplementedError:  # as of an improper base
        drawn = jnp.zeros(distribution.shape(shape))
    return drawn, jnp.asarray(distribution.log_prob(drawn))


_STRUCTURE = (*DISTRIBUTION_STATE, "_own_batch_shape", "_is_vector", "fit")

register_in_scan(FlowDistribution, lambda flow: (*flow._leading_shape, *flow._own_batch_shape))
