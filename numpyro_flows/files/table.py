"""The only table of names that a file may contain.

A file has public names, `numpyro_flows.bijections.Chain`, not the modules where classes are defined, so it can be read
after a class has moved to another module. A name stands for a class, whose instances are built field by field, or for a
unique object (an activation function, `constraints.positive`), which is returned as it is. Nothing is called.
"""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

_CLASSES = {
    "numpyro_flows.bijections": (
        "ActNorm Affine TriangularAffine Autoregressive Bernstein BlockAutoregressive CircularSpline Chain Frozen "
        "Identity Invert Reshape Scan StandardizedCondition ConditionLayout EmbeddedCondition Given Coupling "
        "DeepSigmoid Elementwise DCT Cayley Guided Householder LULinear QRLinear MatrixExponential MixtureCDF "
        "Multiscale Permutation Planar Radial Residual RationalQuadraticSpline Sylvester SinhArcsinh TailTransform "
        "AffineUnivariate ShiftUnivariate YeoJohnson"
    ),
    "numpyro_flows.continuous": (
        "Exact Hutchinson HutchPlusPlus LinearField MLPField ContinuousFlow ConditionalOT FlowMatching RectifiedFlow "
        "FewSteps VariancePreserving OTFlowField PotentialField Energies Training"
    ),
    "numpyro_flows.networks": "MLP Parameters MaskedMLP OnCircle CausalTransformer",
    "numpyro_flows.embeddings": "SetEmbedding SeriesEmbedding ImageEmbedding JointEmbedding",
    "equinox.nn": "Linear MLP GRUCell LayerNorm Identity",
    "diffrax": (
        # solvers
        "Euler Heun Midpoint Ralston Bosh3 Tsit5 Dopri5 Dopri8 ImplicitEuler Kvaerno3 Kvaerno4 Kvaerno5 KenCarp3 "
        "KenCarp4 KenCarp5 VeryChord "
        # step size controllers and adjoints
        "ConstantStepSize PIDController RecursiveCheckpointAdjoint DirectAdjoint ImplicitAdjoint BacksolveAdjoint "
        "ForwardMode"
    ),
    "optimistix": "Chord Newton",
    "lineax": "AutoLinearSolver LU QR SVD Diagonal Triangular Tridiagonal Cholesky CG GMRES BiCGStab",
    "numpyro.distributions": (
        "AsymmetricLaplace AsymmetricLaplaceQuantile BernoulliLogits BernoulliProbs Beta BetaBinomial "
        "BetaNegativeBinomial BetaProportion BinomialLogits BinomialProbs CAR CategoricalLogits CategoricalProbs "
        "Cauchy Chi2 CirculantNormal Dagum Delta Dirichlet DirichletMultinomial DiscreteUniform "
        "DoublyTruncatedPowerLaw ExpandedDistribution Exponential FoldedDistribution Gamma GammaPoisson GaussianCopula "
        "GaussianCopulaBeta GaussianRandomWalk GaussianStateSpace GeometricLogits GeometricProbs Gompertz Gumbel "
        "HalfCauchy HalfNormal HurdleGamma HurdleLogits HurdleLogNormal HurdlePoisson HurdleProbs ImproperUniform "
        "Independent IntervalCensoredDistribution InverseGamma InverseWishart InverseWishartCholesky Kumaraswamy "
        "Laplace LeftCensoredDistribution LeftTruncatedDistribution LeftTruncatedGamma Levy LKJ LKJCholesky Logistic "
        "LogNormal LogUniform LowerTruncatedPowerLaw LowRankMultivariateNormal MaskedDistribution MatrixNormal "
        "MixtureGeneral MixtureSameFamily MultinomialLogits MultinomialProbs MultivariateNormal MultivariateStudentT "
        "NegativeBinomial2 NegativeBinomialLogits NegativeBinomialProbs Normal OrderedLogistic Pareto Poisson "
        "ProjectedNormal RelaxedBernoulliLogits RightCensoredDistribution RightTruncatedDistribution "
        "RightTruncatedGamma SineBivariateVonMises SineSkewed SoftLaplace StudentT TransformedDistribution "
        "TruncatedPolyaGamma TwoSidedTruncatedDistribution TwoSidedTruncatedGamma Uniform Unit VonMises Weibull "
        "Wishart WishartCholesky ZeroInflatedLogits ZeroInflatedPoisson ZeroInflatedProbs ZeroSumNormal"
    ),
    "numpyro.distributions.constraints": (
        "cat greater_than greater_than_eq independent integer_greater_than integer_interval interval less_than "
        "less_than_eq multinomial open_interval zero_sum"
    ),
    "numpyro.distributions.transforms": (
        "AbsTransform AffineTransform CatTransform CholeskyTransform ComplexTransform ComposeTransform "
        "CorrCholeskyTransform CorrMatrixCholeskyTransform DiscreteCosineTransform ExpTransform HaarTransform "
        "IdentityTransform IndependentTransform L1BallTransform LowerCholeskyAffine LowerCholeskyTransform "
        "OrderedTransform PackRealFastFourierCoefficientsTransform PermuteTransform PowerTransform "
        "RealFastFourierTransform RecursiveLinearTransform ReshapeTransform ScaledUnitLowerCholeskyTransform "
        "SigmoidTransform SimplexToOrderedTransform SoftplusLowerCholeskyTransform SoftplusTransform "
        "StickBreakingTransform ZeroSumTransform"
    ),
}

_OBJECTS = {
    "numpyro.distributions.constraints": (
        "boolean circular complex corr_cholesky corr_matrix l1_ball lower_cholesky nonnegative nonnegative_integer "
        "ordered_vector positive positive_definite positive_definite_circulant_vector positive_integer "
        "positive_ordered_vector positive_semidefinite real real_matrix real_vector scaled_unit_lower_cholesky simplex "
        "softplus_lower_cholesky softplus_positive sphere unit_interval"
    ),
    "jax.nn": (
        "celu elu gelu glu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid log_softmax mish relu relu6 selu "
        "sigmoid silu soft_sign softmax softplus squareplus tanh identity"
    ),
    "jax.numpy": "abs arcsinh arctan cos exp log1p sign sin sinh square tanh",
    "jax.lax": "abs cos exp logistic sin tanh",
    "optimistix": "max_norm rms_norm two_norm",
}

# What is written elsewhere than its name in a file says: name in a file -> module and name there.
_HOMES = {
    "numpyro_flows.FlowDistribution": ("numpyro_flows.modeling.distributions", "FlowDistribution"),
    "numpyro_flows.FlowDistribution.Partial": ("numpyro_flows.modeling.partial", "PartialDistribution"),
    "numpyro_flows.FlowDistribution.Estimate": ("numpyro_flows.modeling.partial", "Estimate"),
    "numpyro_flows.FlowDistribution.StudentMixture": ("numpyro_flows.modeling.student_mixture", "StudentMixture"),
    "numpyro_flows.MixedDistribution": ("numpyro_flows.modeling.mixed", "MixedDistribution"),
    "numpyro_flows.MixedDistribution.Columns": ("numpyro_flows.modeling.columns", "Columns"),
    "numpyro_flows.MixedDistribution.DiscreteFactor": ("numpyro_flows.modeling.discrete", "DiscreteFactor"),
    "numpyro_flows.MixedDistribution.Categories": ("numpyro_flows.modeling.discrete", "Categories"),
    "numpyro_flows.MixedDistribution.Counts": ("numpyro_flows.modeling.discrete", "Counts"),
    "numpyro_flows.MixedFit": ("numpyro_flows.density.result", "MixedFit"),
    "numpyro_flows.AnglesTransform": ("numpyro_flows.modeling.angles", "AnglesTransform"),
    "numpyro_flows.Sites.on_line": ("numpyro_flows.modeling.angles", "on_line"),
    "numpyro_flows.FlowTransform": ("numpyro_flows.modeling.transforms", "FlowTransform"),
    "numpyro_flows.Sites": ("numpyro_flows.modeling.sites", "Sites"),
    "numpyro_flows.SitesTransform": ("numpyro_flows.modeling.sites", "SitesTransform"),
    "numpyro_flows.FlowPosterior": ("numpyro_flows.inference.stored", "StoredFit"),
    "numpyro_flows.FlowPosterior.Bell": ("numpyro_flows.inference.mixture", "Bell"),
    "numpyro_flows.FlowPosterior.Product": ("numpyro_flows.inference.product", "Product"),
    "numpyro_flows.FlowPosterior.Normals": ("numpyro_flows.inference.product", "Normals"),
    "numpyro_flows.FlowPosterior.Sliced": ("numpyro_flows.inference.sliced", "Sliced"),
    "numpyro_flows.FlowPosterior.Chains": ("numpyro_flows.inference.draws", "Chains"),
    "numpyro_flows.FlowPosterior.Fingerprint": ("numpyro_flows.inference.fingerprint", "Fingerprint"),
    "numpyro_flows.FewStepsFit": ("numpyro_flows.density.few_steps", "FewStepsFit"),
    "numpyro_flows.DensityFit": ("numpyro_flows.density.result", "DensityFit"),
    "numpyro_flows.DensityFit.Score": ("numpyro_flows.density.result", "Score"),
    "numpyro_flows.DensityFit.SolverCheck": ("numpyro_flows.density.solver_check", "SolverCheck"),
    "numpyro_flows.bijections.ConditionLayout.Leaf": ("numpyro_flows.bijections.condition_layout", "Leaf"),
    "numpyro_flows.bijections.EventNoise": ("numpyro_flows.bijections.noise", "EventNoise"),
    "numpyro_flows.bijections.MonotoneNetwork": ("numpyro_flows.bijections.block_autoregressive", "_MonotoneNetwork"),
    "numpyro_flows.bijections.Partial": ("numpyro_flows.bijections.partial", "Partial"),
    "numpyro_flows.bijections.LogAffine": ("numpyro_flows.bijections.guidance", "_LogAffine"),
    "numpyro_flows.bijections.Ridge": ("numpyro_flows.bijections.sylvester", "_Ridge"),
    "numpyro_flows.continuous.ODESolver": ("numpyro_flows.continuous.solving", "ODESolver"),
    "numpyro_flows.gaussianization.EmpiricalMarginal": ("numpyro_flows.gaussianization.empirical", "EmpiricalMarginal"),
    "numpyro_flows.networks.TransformerBlock": ("numpyro_flows.networks", "_TransformerBlock"),
    "numpyro.distributions.HurdleNegativeBinomial2": ("numpyro.distributions.conjugate", "_HurdleNegativeBinomial2"),
    "numpyro.distributions.transforms.inv": ("numpyro.distributions.transforms", "_InverseTransform"),
    "equinox.nn.MLP.identity": ("equinox.nn._mlp", "_identity"),
    "diffrax.use_stepsize_tol": ("diffrax._root_finder._with_tols", "use_stepsize_tol"),
}

_SINGLE = {f"{module}.{name}": (module, name) for module, names in _OBJECTS.items() for name in names.split()}
TABLE: dict[str, tuple[str, str]] = {
    **{f"{module}.{name}": (module, name) for module, names in _CLASSES.items() for name in names.split()},
    **_SINGLE,
    **_HOMES,
}
"""Name in a file -> module and name there."""


def find(name: str) -> Any:
    """The class or object of a name; a KeyError if the table lacks it, an ImportError if the packages do."""
    module, attribute = TABLE[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError as error:
        raise ImportError(f"{module} has no {attribute}") from error


def name_of(thing: Any) -> str | None:
    """The name of a class, a function or a constraint without parameters; None if the table has none."""
    for name, found in _loaded():
        if found is thing:
            return name
    return None


def name_of_singleton(thing: Any) -> str | None:
    """The name of a unique object, also for a copy of it (JAX copies them in pytrees)."""
    for name, found in _loaded():
        if not isinstance(found, type) and (found is thing or (type(found) is type(thing) and _is_constraint(name))):
            return name
    return None


def _is_constraint(name: str) -> bool:
    return TABLE[name][0] == "numpyro.distributions.constraints"


def _loaded() -> Iterator[tuple[str, Any]]:
    """The part of the table that is already imported; other classes have no instances."""
    for name, (module, attribute) in TABLE.items():
        found = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
        if found is not None:
            yield name, found
