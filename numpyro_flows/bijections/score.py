"""How the score of a density changes under a bijection: what the path-derivative gradient needs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Scalar

from numpyro_flows.bijections.base import AbstractBijection, checked
from numpyro_flows.precision import full_precision


@full_precision()
def transform_with_score(
    bijection: AbstractBijection,
    x: ArrayLike,
    score: ArrayLike,
    condition: ArrayLike | None = None,
) -> tuple[Array, Scalar, Array]:
    """`y = f(x)`, `log |det dy/dx|` and the score of `y`, where `score` is that of `x`; all of one event, of its shape.

    With `log q(y) = log p(x) - log_det(x)` and `J = dy/dx` the score `s(y) = grad_y log q(y)` solves
    `J^T s(y) = s(x) - grad_x log_det(x)`. A bijection which has a method `transform_with_score` solves it on the way
    forward, for a coupling at the price of one vector-Jacobian product; for any other, one of FlowJAX say, it
    comes from its inverse: `s(y) = grad_y [x(y) . s(x) + log |det dx/dy|]` with `s(x)` held fixed.

    Raises:
        ValueError: where the shape of `x` or `condition` is not the bijection's, or a needed condition is missing.

    Source: Vaitl, Winkler, Richter, Kessel 2024, arXiv 2403.15881.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine, transform_with_score
        >>> y, _, score = transform_with_score(Affine(jnp.zeros(1), 2.0), jnp.array([1.0]), jnp.array([-1.0]))
        >>> y.round(2).tolist(), score.round(2).tolist()
        ([2.0], [-0.5])
    """
    x, condition = checked(bijection, x, condition)
    score = jnp.asarray(score, x.dtype)
    own = getattr(bijection, "transform_with_score", None)
    if own is not None:
        return own(x, score, condition)
    y, log_det = bijection.transform_and_log_det(x, condition)
    _, inverse_vjp = jax.vjp(lambda y: bijection.inverse_and_log_det(y, condition), y)
    return y, log_det, inverse_vjp((score, jnp.ones_like(log_det)))[0]
