"""The cost of one evaluation of a density, computed from its program: so the same fit is the same on any machine."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar


class Cost(NamedTuple):
    """Numbers that an evaluation computes in total, numbers in its largest array, and numbers that it may hold at once.

    Values that do not depend on the point, such as a block of rows, are shared by all points and do not count. Loops of
    unknown length, such as those of an adaptive ODE solver, count as one step.
    """

    numbers: int
    largest: int
    at_once: int

    @classmethod
    def of(cls, log_density: Callable[[Array], Scalar], dim: int) -> "Cost":
        """The cost of a log density of vectors with its gradient."""
        return _cost(jax.make_jaxpr(jax.value_and_grad(log_density))(jnp.zeros(dim)).jaxpr, [True])


def _cost(program: Any, moving: Sequence[bool]) -> Cost:
    """The cost of a program whose inputs depend on the point if `moving` says so."""
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
    """Which inputs of a program inside an operation depend on the point; a loop's state does, because any step may."""
    if len(part.invars) != len(inputs):
        return [True] * len(part.invars)
    if equation.primitive.name != "scan":
        return inputs
    outputs = {_kind(out) for out in equation.outvars}  # the state among them: JAX has no stable name for it
    return [moves or _kind(variable) in outputs for moves, variable in zip(inputs, equation.invars)]


def _kind(variable: Any) -> tuple[Any, Any]:
    return getattr(variable.aval, "shape", None), getattr(variable.aval, "dtype", None)


def _parts(params: dict[str, Any]) -> list[Any]:
    """The programs inside an operation, such as a loop or a call."""
    values = (item for value in params.values() for item in (value if isinstance(value, tuple | list) else (value,)))
    return [getattr(item, "jaxpr", item) for item in values if hasattr(item, "eqns")]
