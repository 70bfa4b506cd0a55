"""The contract that every bijection keeps."""

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import AbstractArray, Array, ArrayLike, Float, Scalar

from numpyro_flows._jax import alike
from numpyro_flows.arguments import as_array, require_cond_dim, require_counts
from numpyro_flows.precision import full_precision


class AbstractBijection(eqx.Module):
    """An invertible map `y = f(x | condition)` of one event, with its log-determinant.

    The public methods check shapes and call `_transform` and `_inverse`, at full precision on every device. A subclass
    writes these two. Both work on ONE event: batch with `jax.vmap`. The protocol (these methods, `shape` and
    `cond_shape`) is that of FlowJAX (Ward, https://github.com/danielward27/flowjax), so that bijections of both
    libraries can be combined.

    Attributes:
        shape: shape of `x` and of `y`.
        cond_shape: shape of the condition; None for an unconditional bijection, which ignores a condition.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import AbstractBijection
        >>> class Double(AbstractBijection):
        ...     shape, cond_shape = (2,), None
        ...     def _transform(self, x, condition):
        ...         return 2 * x, 2 * jnp.log(2.0)
        ...     def _inverse(self, y, condition):
        ...         return y / 2, -2 * jnp.log(2.0)
        >>> Double().inverse(jnp.array([2.0, 4.0])).tolist()
        [1.0, 2.0]
    """

    shape: AbstractVar[tuple[int, ...]]
    cond_shape: AbstractVar[tuple[int, ...] | None]

    def transform_and_log_det(self, x: ArrayLike, condition: ArrayLike | None = None) -> tuple[Array, Scalar]:
        """`y = f(x)` and `log |det dy/dx|`: from the base to the target, the direction of sampling.

        Raises:
            ValueError: if the shape of `x` or `condition` is not the bijection's, or a needed condition is missing.
        """
        with full_precision():
            return self._transform(*checked(self, x, condition))

    def inverse_and_log_det(self, y: ArrayLike, condition: ArrayLike | None = None) -> tuple[Array, Scalar]:
        """`x = f^-1(y)` and `log |det dx/dy|`: from the target to the base, the direction of scoring.

        Raises:
            ValueError: if the shape of `y` or `condition` is not the bijection's, or a needed condition is missing.
        """
        with full_precision():
            return self._inverse(*checked(self, y, condition))

    def transform(self, x: ArrayLike, condition: ArrayLike | None = None) -> Array:
        """`y = f(x)` alone."""
        return self.transform_and_log_det(x, condition)[0]

    def inverse(self, y: ArrayLike, condition: ArrayLike | None = None) -> Array:
        """`x = f^-1(y)` alone."""
        return self.inverse_and_log_det(y, condition)[0]

    def _transform_with_score(self, x: Array, score: Array, condition: Array | None) -> tuple[Array, Scalar, Array]:
        """The result of the function `transform_with_score`, for arguments that it has checked.

        This default uses the inverse. A subclass overrides it if it can carry the score forward without an inverse.
        """
        y, log_det = self.transform_and_log_det(x, condition)
        _, inverse_vjp = jax.vjp(lambda y: self.inverse_and_log_det(y, condition), y)
        return y, log_det, inverse_vjp((score, jnp.ones_like(log_det)))[0]

    @abstractmethod
    def _transform(self, x: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]: ...

    @abstractmethod
    def _inverse(self, y: Float[Array, "..."], condition: Array | None) -> tuple[Array, Scalar]: ...


class AbstractShaped(AbstractBijection):
    """A bijection whose shapes are fields, which its constructor sets; `_set_dims` sets them for vectors."""

    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def _set_dims(self, dim: int, cond_dim: int | None = None) -> None:
        require_counts(dim=dim)
        require_cond_dim(cond_dim)
        self.shape, self.cond_shape = (dim,), None if cond_dim is None else (cond_dim,)


def checked(bijection: AbstractBijection, x: ArrayLike, condition: ArrayLike | None) -> tuple[Array, Array | None]:
    """`x` and the condition as arrays with checked shapes, in the widest floating type of the two and the bijection."""
    name = type(bijection).__name__
    x = as_array(x, name)
    arrays = jax.tree.leaves(eqx.filter(bijection, eqx.is_inexact_array))
    dtype = jnp.result_type(x, float, *arrays)
    if x.shape != bijection.shape:
        raise ValueError(f"{name} expected an event of shape {bijection.shape}, got {x.shape}; batch with jax.vmap")
    if bijection.cond_shape is None:
        return alike(x.astype(dtype), arrays), None
    if condition is None:
        raise ValueError(f"{name} expected a condition of shape {bijection.cond_shape}, got None")
    condition = as_array(condition, "condition")
    if condition.shape != bijection.cond_shape:
        raise ValueError(f"{name} expected a condition of shape {bijection.cond_shape}, got {condition.shape}")
    dtype = jnp.result_type(dtype, condition)
    return alike((x.astype(dtype), condition.astype(dtype)), arrays)


def merge_cond_shapes(bijections: "tuple[AbstractBijection, ...]") -> tuple[int, ...] | None:
    """The shape of the condition of a composition of `bijections`; a ValueError if two need different ones."""
    shapes = {b.cond_shape for b in bijections if b.cond_shape is not None}
    if len(shapes) > 1:
        raise ValueError(f"expected bijections with one shape of condition, got {sorted(shapes)}")
    return shapes.pop() if shapes else None


def missing_arrays(node: Any) -> Iterator[str]:
    """Names of arrays, such as permutations, that are None in a bijection that has only its parameters."""
    if isinstance(node, eqx.Module):
        for field in dataclasses.fields(node):
            value, kind = getattr(node, field.name), field.type
            if value is None and isinstance(kind, type) and issubclass(kind, AbstractArray):
                yield f"{type(node).__name__}.{field.name}"
            else:
                yield from missing_arrays(value)
    elif isinstance(node, list | tuple):
        for one in node:
            yield from missing_arrays(one)
