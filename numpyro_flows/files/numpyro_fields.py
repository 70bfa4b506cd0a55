"""The fields of NumPyro's distributions, constraints and transforms, and the kind of value that each may have."""

from typing import Any

import numpyro.distributions as dist
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

_SHAPE = tuple[int, ...]
_DISTRIBUTIONS = (
    "base_dist init_dist marginal_dist _ald _beta _cauchy _chi2 _dirichlet _gamma _normal _mixing_distribution "
    "_component_distribution"
)
_TRANSFORMS = list[Transform] | tuple[Transform, ...]
KINDS: dict[str, Any] = {
    # of distributions
    **dict.fromkeys(_DISTRIBUTIONS.split(), dist.Distribution),
    "_component_distributions": list[dist.Distribution] | tuple[dist.Distribution, ...],
    "transforms": _TRANSFORMS,
    "support": Constraint,
    "_support": Constraint | None,
    "_batch_shape": _SHAPE,
    "_event_shape": _SHAPE,
    "_expanded_sizes": dict[int, int],
    "_interstitial_sizes": dict[int, int],
    "_validate_args": bool | None,
    "has_enumerate_support": bool | None,
    "sample_method": str,
    # of constraints
    "base_constraint": Constraint,
    "cseq": tuple[Constraint, ...],
    "lengths": _SHAPE,
    "dim": int,
    "_event_dim": int,
    "reinterpreted_batch_ndims": int,
    # of transforms
    "_domain": Constraint,
    "_inv": Transform,
    "base_transform": Transform,
    "parts": _TRANSFORMS,
    "_forward_shape": _SHAPE,
    "_inverse_shape": _SHAPE,
    "transform_shape": _SHAPE | None,
    "shape": _SHAPE | None,
    "transform_ndims": int,
    "flip": bool,
}
"""Kinds of NumPyro's fields by their names; all others are numbers or arrays of them."""

_WITHOUT_FIELDS = (
    "AbsTransform CholeskyTransform ComplexTransform CorrCholeskyTransform CorrMatrixCholeskyTransform "
    "IdentityTransform L1BallTransform LowerCholeskyTransform OrderedTransform ScaledUnitLowerCholeskyTransform "
    "SigmoidTransform SoftplusLowerCholeskyTransform SoftplusTransform StickBreakingTransform"
)
FIELDS = {
    # constraints
    "_Cat": "cseq lengths dim",
    "_GreaterThan": "lower_bound",
    "_GreaterThanEq": "lower_bound",
    "_IndependentConstraint": "base_constraint reinterpreted_batch_ndims",
    "_IntegerGreaterThan": "lower_bound",
    "_IntegerInterval": "lower_bound upper_bound",
    "_Interval": "lower_bound upper_bound",
    "_LessThan": "upper_bound",
    "_LessThanEq": "upper_bound",
    "_Multinomial": "upper_bound",
    "_OpenInterval": "lower_bound upper_bound",
    "_ZeroSum": "_event_dim",
    # transforms
    "AffineTransform": "loc scale _domain",
    "CatTransform": "transforms lengths dim",
    "ComposeTransform": "parts",
    "DiscreteCosineTransform": "dim smooth",
    "ExpTransform": "_domain",
    "HaarTransform": "dim flip",
    "IndependentTransform": "base_transform reinterpreted_batch_ndims",
    "LowerCholeskyAffine": "loc scale_tril",
    "PackRealFastFourierCoefficientsTransform": "shape",
    "PermuteTransform": "permutation",
    "PowerTransform": "exponent",
    "RealFastFourierTransform": "transform_shape transform_ndims",
    "RecursiveLinearTransform": "transition_matrix initial_value",
    "ReshapeTransform": "_forward_shape _inverse_shape",
    "SimplexToOrderedTransform": "anchor_point",
    "ZeroSumTransform": "transform_ndims",
    "_InverseTransform": "_inv",
    **dict.fromkeys(_WITHOUT_FIELDS.split(), ""),
}
"""Fields of NumPyro's constraints and transforms: those of its pytrees."""
