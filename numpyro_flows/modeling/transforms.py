"""A bijection as a NumPyro transform."""

import math
import weakref
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike
from numpyro.distributions import constraints

from numpyro_flows.arguments import as_array
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.bijections.base import missing_arrays
from numpyro_flows.bijections.embedded import layout_of
from numpyro_flows.files.rules import InFiles
from numpyro_flows.modeling._numpyro import TwoWayTransform
from numpyro_flows.modeling.trees import Split
from numpyro_flows.precision import full_precision

Condition = ArrayLike | Mapping[str, Any]
"""An array; or a dict of arrays, or of such dicts, for a flow with an embedding."""


class _Call(NamedTuple):
    """The log-determinant of one call, as long as its value lives."""

    x: weakref.ref
    y: weakref.ref
    log_det: Array


class FlowTransform(TwoWayTransform, InFiles):
    """`y = f(x | condition)` as a NumPyro `Transform` on real events of the bijection's shape.

    Values and the condition may have any batch shapes; the two broadcast. The log-determinant is computed together with
    the value and returned as NumPyro's `intermediates`. So code that needs both, such as NeuTra, pays for only one
    pass. Gradients flow through `x`, the bijection's arrays and the condition. The object is a pytree whose leaves are
    the arrays of the bijection and the condition.

    Args:
        bijection: a bijection of this library or of FlowJAX, or any object with `shape`, `cond_shape`,
            `transform_and_log_det` and `inverse_and_log_det`.
        condition: array of shape `(*batch, *cond_shape)`. If the bijection has an embedding, an array or a dict of
            arrays in its format, each `(*batch, *shape)`. A conditional bijection needs it only when the transform is
            used.

    Raises:
        TypeError: if `bijection` lacks the methods of a bijection.
        ValueError: if a condition has the wrong shape, or is missing when the transform is used. Also if the bijection
            has only its parameters, as `eqx_module` registers them.

    Example:
        >>> import jax
        >>> from numpyro_flows import FlowTransform, flows
        >>> transform = FlowTransform(flows.realnvp(jax.random.key(0), 3))
        >>> transform(jax.numpy.ones((7, 5, 3))).shape
        (7, 5, 3)
    """

    FILE_KINDS: ClassVar = {"bijection": AbstractBijection, "condition": Array | dict | None}
    _last_call: _Call | None = None

    def __init__(self, bijection: AbstractBijection, condition: Condition | None = None):
        missing = [name for name in _PROTOCOL if not hasattr(bijection, name)]
        if missing:
            raise TypeError(f"FlowTransform expected a bijection, got {type(bijection).__name__} without {missing}")
        if absent := list(missing_arrays(bijection)):
            raise ValueError(
                f"FlowTransform expected a bijection with all its arrays, got one with None for {', '.join(absent)}: "
                "join parameters with the rest by `equinox.combine(params, bijection)`"
            )
        self.parts = Split((bijection, _checked_condition(bijection, condition)))
        self.event_shape = tuple(bijection.shape)
        self._cond_shape = None if bijection.cond_shape is None else tuple(bijection.cond_shape)

    @property
    def bijection(self) -> AbstractBijection:
        return self.parts.tree[0]

    @property
    def condition(self) -> Any:
        """The condition in the format in which it was given: an array, or a dict of arrays for an embedding."""
        layout, vector = layout_of(self.bijection), self.parts.tree[1]
        return vector if layout is None or vector is None else layout.unpack(vector)

    @property
    def packed_condition(self) -> Array | None:
        """The condition in the bijection's format: one array, or one vector of all its arrays."""
        return self.parts.tree[1]

    @property
    def domain(self) -> constraints.Constraint:
        return _real_events(len(self.event_shape))

    @property
    def codomain(self) -> constraints.Constraint:
        return _real_events(len(self.event_shape))

    def __call__(self, x: Array) -> Array:  # pyright: ignore
        y, log_det = self.call_with_intermediates(x)
        if isinstance(x, jax.Array):
            self._last_call = _Call(weakref.ref(x), weakref.ref(y, self._forget), log_det)
        return y

    def inverse(self, y: Array) -> Array:
        return self.inverse_and_log_det(y)[0]

    def call_with_intermediates(self, x: Array) -> tuple[Array, Array]:  # pyright: ignore
        """`f(x)` and, as the intermediate, `log |det dy/dx|` of the batch's shape."""
        return self._batched(self.bijection.transform_and_log_det, x)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """`f^-1(y)` and `log |det dx/dy|` in one pass."""
        return self._batched(self.bijection.inverse_and_log_det, y)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Array | None = None) -> Array:  # pyright: ignore
        """`log |det dy/dx|`, of the batch's shape: a pass over `x`, unless `intermediates` or the last call has it."""
        if intermediates is not None:
            return intermediates
        last = self._last_call
        if last is not None and last.x() is x and last.y() is y:
            return last.log_det
        return self.call_with_intermediates(x)[1]

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*jnp.broadcast_shapes(self._batch_shape(shape), self.condition_batch_shape), *self.event_shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.forward_shape(shape)

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.parts,), (self.event_shape, self._cond_shape)

    @classmethod
    def tree_unflatten(cls, aux_data: Any, params: Any) -> "FlowTransform":
        self = cls.__new__(cls)
        (self.parts,) = params
        self.event_shape, self._cond_shape = aux_data
        return self

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        if not isinstance(other, FlowTransform):
            return False
        equal = eqx.tree_equal(self.parts.tree, other.parts.tree)
        # under tracing the values are unknown: then only structure counts, as for NumPyro's own transforms
        return True if static and isinstance(equal, Tracer) else equal

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_last_call": None}  # weak references are of this process

    def _forget(self, reference: weakref.ref) -> None:
        """Drop the record of a call whose value is gone: under tracing the log-determinant must not outlive it."""
        if self._last_call is not None and self._last_call.y is reference:
            self._last_call = None

    @property
    def condition_batch_shape(self) -> tuple[int, ...]:
        condition = self.parts.tree[1]
        return () if condition is None else condition.shape[: condition.ndim - len(self._cond_shape or ())]

    def _batch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        cut = len(shape) - len(self.event_shape)
        if cut < 0 or shape[cut:] != self.event_shape:
            raise ValueError(f"FlowTransform expected a shape that ends with {self.event_shape}, got {shape}")
        return shape[:cut]

    def _broadcast(self, batch: tuple[int, ...]) -> tuple[int, ...]:
        """Broadcast a batch of values with the batch of conditions."""
        try:
            return jnp.broadcast_shapes(batch, self.condition_batch_shape)
        except ValueError as error:
            raise ValueError(
                f"expected values whose batch shape fits the condition's, {self.condition_batch_shape}, got "
                f"{batch}: "
                "each value needs one condition; for all pairs write values[:, None]"
            ) from error

    @full_precision()  # a bijection of FlowJAX does not ask for it
    def _batched(self, method: Any, x: Array) -> tuple[Array, Array]:
        """`method` over all batch axes: one `vmap`, or two if each batch element has its own condition.

        Then the inner `vmap` is over values with one condition, so that results of the condition alone are computed
        once.
        """
        condition = self.parts.tree[1]
        if condition is None and self._cond_shape is not None:
            raise ValueError(
                f"the flow expected a condition of shape (..., *{self._cond_shape}), got None: "
                "`FlowDistribution.given(condition)` gives it one"
            )
        x = as_array(x, "value")
        batch, of_conditions = self._batch_shape(x.shape), self.condition_batch_shape
        if condition is None or of_conditions == ():
            y, log_det = jax.vmap(method, in_axes=(0, None))(x.reshape(-1, *self.event_shape), condition)
        else:
            batch = self._broadcast(batch)
            more, own = batch[: len(batch) - len(of_conditions)], batch[len(batch) - len(of_conditions) :]
            sizes, cond_shape = (math.prod(more), math.prod(own)), condition.shape[len(of_conditions) :]
            x = jnp.broadcast_to(x, (*batch, *self.event_shape)).reshape(*sizes, *self.event_shape)
            condition = jnp.broadcast_to(condition, (*own, *cond_shape)).reshape(sizes[1], *cond_shape)
            y, log_det = jax.vmap(jax.vmap(method, in_axes=(0, None)), in_axes=(1, 0), out_axes=1)(x, condition)
        return y.reshape(*batch, *self.event_shape), log_det.reshape(batch)


_PROTOCOL = ("shape", "cond_shape", "transform_and_log_det", "inverse_and_log_det")


@cache  # NumPyro compares constraints by identity
def _real_events(num_dims: int) -> constraints.Constraint:
    return constraints.independent(constraints.real, num_dims) if num_dims else constraints.real


def _checked_condition(bijection: AbstractBijection, condition: Condition | None) -> Array | None:
    if bijection.cond_shape is None or condition is None:
        return None  # a condition that nothing uses is ignored, as bijections do
    if (layout := layout_of(bijection)) is not None:
        return layout.pack(condition)
    condition = as_array(condition, "condition")
    cut = condition.ndim - len(bijection.cond_shape)
    if cut < 0 or condition.shape[cut:] != tuple(bijection.cond_shape):
        raise ValueError(
            f"FlowTransform expected a condition whose shape ends with {bijection.cond_shape}, got {condition.shape}"
        )
    return condition
