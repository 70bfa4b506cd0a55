"""What one evaluation of a density costs, told from its program: so the same fit is the same on any machine."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar


class Cost(NamedTuple):
    """Numbers that an evaluation computes in all, and those of its largest array.

    Loops of a length that nobody knows before, as of an ODE solver with adaptive steps, count as one step.
    """

    numbers: int
    largest: int

    @classmethod
    def of(cls, log_density: Callable[[Array], Scalar], dim: int) -> "Cost":
        """Of a log density of vectors with its gradient."""
        return _cost(jax.make_jaxpr(jax.value_and_grad(log_density))(jnp.zeros(dim)).jaxpr)


def _cost(program: Any) -> Cost:
    numbers, largest = 0, 0
    for equation in program.eqns:
        inner = [_cost(part) for part in _parts(equation.params)]
        own = sum(math.prod(getattr(out.aval, "shape", ())) for out in equation.outvars)
        steps = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        numbers += steps * sum(part.numbers for part in inner) if inner else own
        largest = max(largest, own, *(part.largest for part in inner))
    return Cost(numbers, largest)


def _parts(params: dict[str, Any]) -> list[Any]:
    """The programs that an operation has inside, as a loop or a call has."""
    values = (item for value in params.values() for item in (value if isinstance(value, tuple | list) else (value,)))
    return [item for item in values if hasattr(item, "eqns")]
