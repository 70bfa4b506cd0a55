"""The only file that uses unstable API of JAX and Equinox; tested by `tests/test_private_api.py`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from equinox import _errors
from jax.core import eval_context as eval_context  # in `jax.ensure_compile_time_eval` checks of FlowJAX fail
from jax.core import eval_jaxpr as eval_jaxpr
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, PyTree

raise_if = _errors.branched_error_if_impl_jit
"""Equinox's runtime check, which `eqx.error_if` and the solvers of lineax, optimistix and diffrax end in."""


@contextmanager
def checks_by(check: Callable[..., Any]) -> Iterator[None]:
    """The context in which `check`, with the arguments of `raise_if`, replaces Equinox's check, which has no hook."""
    outer = _errors.branched_error_if_impl_jit
    _errors.branched_error_if_impl_jit = check
    try:
        yield
    finally:
        _errors.branched_error_if_impl_jit = outer


def traced(function: Callable[..., PyTree], *like: PyTree) -> Callable[..., list[Array]]:
    """The leaves of the result of `function` for arguments `like` these, traced once here; later it is not called."""
    return jaxpr_as_fun(jax.make_jaxpr(function)(*like))


def used_leaves(function: Callable[[PyTree], PyTree], like: PyTree) -> PyTree:
    """Which leaves of an argument `like` this one `function` uses."""
    jaxpr = jax.make_jaxpr(function)(like).jaxpr
    used = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    return jax.tree.unflatten(jax.tree.structure(like), [id(variable) in used for variable in jaxpr.invars])


def alike[T: PyTree](values: T, *others: PyTree) -> T:
    """`values`, marked as varying over every axis of devices that one of them or of `others` varies over.

    Loops need a carry of one type from start to end, but values that enter as equal on all devices may leave as
    different ones. Outside `jax.shard_map` nothing varies, and nothing is done.
    """
    axes = frozenset[Any]().union(*map(varying_axes, jax.tree.leaves((values, others))))
    if not axes:
        return values

    def mark(leaf: Any) -> Any:
        missing = axes - varying_axes(leaf)
        return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(mark, values)


def varying_axes(leaf: Any) -> frozenset[Any]:
    """The axes of devices that a value inside `jax.shard_map` varies over."""
    kind: Any = jax.typeof(leaf)
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # from jax 0.12 on
