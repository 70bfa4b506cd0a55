"""The change of a density's score under a bijection, which the path-derivative gradient needs."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Scalar

from numpyro_flows.bijections.base import AbstractBijection, checked
from numpyro_flows.precision import full_precision


@full_precision()
def transform_with_score(
    bijection: AbstractBijection, x: ArrayLike, score: ArrayLike, condition: ArrayLike | None = None
) -> tuple[Array, Scalar, Array]:
    """`y = f(x)`, `log |det dy/dx|` and the score of `y`, given the `score` of `x`; for one event.

    With `log q(y) = log p(x) - log_det(x)` and `J = dy/dx`, the score `s(y) = grad_y log q(y)` solves
    `J^T s(y) = s(x) - grad_x log_det(x)`. A bijection that overrides `_transform_with_score` solves this in its forward
    pass; a coupling needs one vector-Jacobian product for it. For other bijections, such as those of FlowJAX, the score
    comes from the inverse: `s(y) = grad_y [x(y) . s(x) + log |det dx/dy|]` with `s(x)` held fixed.

    Raises:
        ValueError: if the shape of `x` or `condition` is not the bijection's, or a needed condition is missing.

    Source: Vaitl, Winkler, Richter, Kessel 2024, arXiv 2403.15881.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.bijections import Affine, transform_with_score
        >>> y, _, score = transform_with_score(Affine(jnp.zeros(1), 2.0), jnp.array([1.0]), jnp.array([-1.0]))
        >>> y.round(2).tolist(), score.round(2).tolist()
        ([2.0], [-0.5])
    """
    x, condition = checked(bijection, x, condition)
    # a bijection of FlowJAX has the rest of the protocol, which is what the base class needs
    own = type(bijection) if isinstance(bijection, AbstractBijection) else AbstractBijection
    return own._transform_with_score(bijection, x, jnp.asarray(score, x.dtype), condition)
