"""What one evaluation of a density costs, told from its program before it runs: so the same fit is the same anywhere."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

from numpyro_flows._jax import ClosedJaxpr, Jaxpr


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


def _cost(jaxpr: Jaxpr) -> Cost:
    numbers, largest = 0, 0
    for equation in jaxpr.eqns:
        inner = [_cost(part) for part in _parts(equation.params)]
        own = sum(math.prod(getattr(out.aval, "shape", ())) for out in equation.outvars)
        steps = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        numbers += steps * sum(part.numbers for part in inner) if inner else own
        largest = max(largest, own, *(part.largest for part in inner))
    return Cost(numbers, largest)


def _parts(params: dict[str, object]) -> list[Jaxpr]:
    """The programs that an operation has inside, as a loop or a call has."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found
