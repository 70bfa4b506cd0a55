"""The common part of all bijections made of bijections: they list their parts, and the rest follows."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, override

import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from numpyro_flows.bijections.base import AbstractBijection, AbstractShaped
from numpyro_flows.bijections.score import transform_with_score

Step = Callable[..., tuple[Any, ...]]
"""`step(part, x, *others) -> (x, log_det, *others)`."""


class Part(NamedTuple):
    """A bijection within another.

    Attributes:
        bijection: any bijection, FlowJAX's too.
        condition: the condition that it is given.
        inverted: whether its inverse is used.
        index: the coordinates that it maps; None for the whole event, which it may see in another shape.
    """

    bijection: AbstractBijection
    condition: Array | None
    inverted: bool = False
    index: Any = None

    def move(self, x: Array, to_base: bool) -> tuple[Array, Scalar]:
        """The image of its own coordinates, towards the target or towards the base, and the log-determinant."""
        inverse = to_base != self.inverted
        method = self.bijection.inverse_and_log_det if inverse else self.bijection.transform_and_log_det
        return method(x, self.condition)

    def take(self, x: Array) -> Array:
        """Its coordinates of an event."""
        return x.reshape(self.bijection.shape) if self.index is None else x[self.index]

    def put(self, x: Array, moved: Array) -> Array:
        """The event with its coordinates moved."""
        return moved.reshape(x.shape) if self.index is None else x.at[self.index].set(moved)


class AbstractComposition(AbstractShaped):
    """Bijections one after another."""

    @abstractmethod
    def _parts(self, condition: Array | None) -> Sequence[Part]:
        """All parts, the first applied first."""

    def _through(self, step: Step, condition: Array | None, to_base: bool, *events: Array) -> tuple[Any, ...]:
        """`(x, log_det, *others)` after all parts, each applied by `step(part, x, *others)`."""
        log_det = jnp.zeros_like(events[0], shape=())
        parts = self._parts(condition)
        for part in parts[::-1] if to_base else parts:
            x, increment, *others = step(part, *map(part.take, events))
            events = tuple(map(part.put, events, (x, *others)))
            log_det = log_det + increment
        return events[0], log_det, *events[1:]

    def _transform(self, x: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        return self._through(lambda part, x: part.move(x, to_base=False), condition, False, x)

    def _inverse(self, y: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]:
        return self._through(lambda part, y: part.move(y, to_base=True), condition, True, y)

    @override
    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        def step(part: Part, x: Array, score: Array) -> tuple[Array, Scalar, Array]:
            return transform_with_score(part.bijection, x, score, part.condition)

        return self._through(step, condition, False, x, score)
