"""What one evaluation of a density costs, told from its program: so the same fit is the same on any machine."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar


class Cost(NamedTuple):
    """Numbers that an evaluation computes in all, those of its largest array, and those that it may have at once.

    What does not depend on the point, as a block of rows that is read, is shared by all points, and does not count.
    Loops of a length that nobody knows before, as of an ODE solver with adaptive steps, count as one step.
    """

    numbers: int
    largest: int
    at_once: int

    @classmethod
    def of(cls, log_density: Callable[[Array], Scalar], dim: int) -> "Cost":
        """Of a log density of vectors with its gradient."""
        return _cost(jax.make_jaxpr(jax.value_and_grad(log_density))(jnp.zeros(dim)).jaxpr, [True])


def _cost(program: Any, moving: Sequence[bool]) -> Cost:
    """Of a program whose inputs depend on the point where `moving` says so."""
    numbers, largest, at_once = 0, 0, 0
    depends = {variable for variable, moves in zip(program.invars, moving) if moves}
    for equation in program.eqns:
        inputs = [not hasattr(variable, "val") and variable in depends for variable in equation.invars]
        if not any(inputs):
            continue
        depends.update(equation.outvars)
        inner = [_cost(part, _moving_inside(equation, part, inputs)) for part in _parts(equation.params)]
        own = sum(math.prod(getattr(out.aval, "shape", ())) for out in equation.outvars)
        steps = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        numbers += steps * sum(part.numbers for part in inner) if inner else own
        at_once += sum(part.at_once for part in inner) + (own if steps > 1 or not inner else 0)
        largest = max(largest, own, *(part.largest for part in inner))
    return Cost(numbers, largest, at_once)


def _moving_inside(equation: Any, part: Any, inputs: list[bool]) -> list[bool]:
    """Which inputs of a program inside an operation depend on the point; of a loop's state all, as any step may."""
    if len(part.invars) != len(inputs):
        return [True] * len(part.invars)
    if equation.primitive.name != "scan":
        return inputs
    outputs = {_kind(out) for out in equation.outvars}  # the state among them: JAX has no stable name for it
    return [moves or _kind(variable) in outputs for moves, variable in zip(inputs, equation.invars)]


def _kind(variable: Any) -> tuple[Any, Any]:
    return getattr(variable.aval, "shape", None), getattr(variable.aval, "dtype", None)


def _parts(params: dict[str, Any]) -> list[Any]:
    """The programs that an operation has inside, as a loop or a call has."""
    values = (item for value in params.values() for item in (value if isinstance(value, tuple | list) else (value,)))
    return [getattr(item, "jaxpr", item) for item in values if hasattr(item, "eqns")]
