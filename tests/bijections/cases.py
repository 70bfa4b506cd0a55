"""The table of bijections that the laws are tried on: a new family adds its constructors here."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from numpyro_flows import flows
from numpyro_flows.bijections import (
    DCT,
    AbstractBijection,
    ActNorm,
    Affine,
    AffineUnivariate,
    Cayley,
    Chain,
    Coupling,
    Elementwise,
    Given,
    Householder,
    Identity,
    Invert,
    LULinear,
    MatrixExponential,
    MixtureCDF,
    Multiscale,
    Permutation,
    QRLinear,
    RationalQuadraticSpline,
    Reshape,
    Scan,
    SinhArcsinh,
    TailTransform,
    TriangularAffine,
    YeoJohnson,
)

COND_DIM = 2
_KEY = jax.random.PRNGKey(0)  # of the raw kind, which is the same in single and double precision
_CHAIN = np.eye(5, k=-1, dtype=bool)  # each coordinate may depend on its neighbour only


def _triangular(dim: int) -> TriangularAffine:
    return TriangularAffine(jnp.zeros(dim), 1.5 * jnp.eye(dim))


def _layer(key) -> Chain:
    return Chain([_triangular(3), Coupling(key, 3, AffineUnivariate()), Permutation([2, 0, 1])])


# Layers and flows start as the identity, the other cases need not.
LAYERS: dict[str, Callable[[], AbstractBijection]] = {
    "coupling affine": lambda: Coupling(_KEY, 3, AffineUnivariate()),
    "coupling affine conditional": lambda: Coupling(_KEY, 3, AffineUnivariate(), cond_dim=COND_DIM),
    "coupling tails": lambda: Coupling(_KEY, 3, SinhArcsinh()),
    "elementwise tails": lambda: Elementwise(3, SinhArcsinh()),
    "coupling spline": lambda: Coupling(_KEY, 3, RationalQuadraticSpline()),
    "coupling spline conditional": lambda: Coupling(_KEY, 3, RationalQuadraticSpline(), cond_dim=COND_DIM),
    "lu linear": lambda: LULinear(_KEY, 3),
    "householder": lambda: Householder(_KEY, 3),
    "qr linear": lambda: QRLinear(_KEY, 3),
    "cayley": lambda: Cayley(_KEY, 3),
    "matrix exponential": lambda: MatrixExponential(_KEY, 3),
    "matrix exponential with bias": lambda: MatrixExponential(_KEY, 3, bias=True, time=-0.7),
    "act norm": lambda: ActNorm(3),
    "mixture coupling": lambda: Coupling(_KEY, 3, MixtureCDF(4)),
    "mixture of logistics": lambda: Elementwise(3, MixtureCDF(4, "logistic")),
    "multiscale layers": lambda: Multiscale([Coupling(_KEY, dim, RationalQuadraticSpline()) for dim in (4, 2, 1)]),
}

_SMALL = {"num_layers": 3, "hidden": (8, 8)}  # natural order, its reverse, a random one
RECIPES: dict[str, flows.Recipe] = {
    "nice": partial(flows.nice, **_SMALL),
    "realnvp": partial(flows.realnvp, **_SMALL),
    "glow": partial(flows.glow, **_SMALL),
    "maf": partial(flows.maf, **_SMALL),
    "iaf": partial(flows.iaf, **_SMALL),
    "nsf_coupling": partial(flows.nsf_coupling, **_SMALL),
    "nsf_autoregressive": partial(flows.nsf_autoregressive, **_SMALL),
    "naf": partial(flows.naf, num_units=4, **_SMALL),
    "bnaf": partial(flows.bnaf, num_layers=2, hidden=(4, 4)),
    "planar": partial(flows.planar, **_SMALL),
    "radial": partial(flows.radial, **_SMALL),
    "sylvester": partial(flows.sylvester, **_SMALL),
    "bernstein": partial(flows.bernstein, **_SMALL),
    "residual": partial(flows.residual, **_SMALL),
    "tarflow": partial(flows.tarflow, num_layers=2, width=8, num_heads=2),
    "multiscale": partial(flows.multiscale, flow=partial(flows.realnvp, **_SMALL)),
}
# every recipe in every dimension, and with a condition and without: not all pairs of the two, which would take twice
# the time to compile and find nothing more
SHAPES = ((1, COND_DIM), (2, None), (5, COND_DIM), (32, None))
GAUSSIANIZATION = ("gaussianization", "coupling_gaussianization")
NEEDS_EVEN_DIM = ("multiscale",)
NEARLY = ("naf", "bnaf", "mixture", *GAUSSIANIZATION)  # start near the identity, not as it
FLOWS: dict[str, Callable[[], AbstractBijection]] = {
    f"{name} {dim}d{' conditional' if cond_dim else ''}": partial(recipe, _KEY, dim, cond_dim=cond_dim)
    for name, recipe in RECIPES.items()
    for dim, cond_dim in SHAPES
    if dim % 2 == 0 or name not in NEEDS_EVEN_DIM
} | {
    "realnvp of default size 5d": lambda: flows.realnvp(_KEY, 5),
    "nsf_coupling of default size 5d": lambda: flows.nsf_coupling(_KEY, 5),
    "multiscale 4d conditional": partial(RECIPES["multiscale"], _KEY, 4, cond_dim=COND_DIM),
    "realnvp with tails 3d conditional": lambda: flows.with_tails(flows.realnvp)(_KEY, 3, cond_dim=COND_DIM),
    "realnvp with adjacency 5d": lambda: flows.realnvp(_KEY, 5, adjacency=_CHAIN | _CHAIN.T, **_SMALL),
    "iaf with adjacency 5d conditional": lambda: flows.iaf(_KEY, 5, cond_dim=2, adjacency=_CHAIN, **_SMALL),
    "nsf_autoregressive of two passes 5d": lambda: flows.nsf_autoregressive(_KEY, 5, passes=2, **_SMALL),
    "naf for densities 5d": lambda: flows.naf(_KEY, 5, fast="density", num_units=4, **_SMALL),
    # few, as a numerical inverse within sweeps takes long to compile
    "gaussianization 1d": lambda: flows.gaussianization(_KEY, 1, num_components=4, **_SMALL),
    "gaussianization 2d": lambda: flows.gaussianization(_KEY, 2, num_components=4, **_SMALL),
    "gaussianization 5d conditional": lambda: flows.gaussianization(
        _KEY, 5, cond_dim=COND_DIM, num_components=4, **_SMALL
    ),
    "gaussianization 32d conditional": lambda: flows.gaussianization(_KEY, 32, cond_dim=COND_DIM, **_SMALL),
    "coupling_gaussianization 1d": lambda: flows.coupling_gaussianization(_KEY, 1, num_components=4, **_SMALL),
    "coupling_gaussianization 5d conditional": lambda: flows.coupling_gaussianization(
        _KEY, 5, cond_dim=COND_DIM, num_components=4, **_SMALL
    ),
    "tarflow of blocks 5d conditional": lambda: flows.tarflow(
        _KEY, 5, fast="sampling", cond_dim=COND_DIM, num_layers=2, block_size=2, width=8, num_heads=2
    ),
    "tarflow of images 16d": lambda: flows.tarflow(
        _KEY, 16, image_shape=(4, 4), num_layers=3, width=8, num_heads=2, num_blocks=1
    ),
    # its condition is one number, the time, which a gate bounds
    "matrix_exponential 2d": lambda: flows.matrix_exponential(_KEY, 2, num_layers=2, time=0.5),
    "matrix_exponential in time 5d conditional": lambda: flows.matrix_exponential(_KEY, 5, cond_dim=1, gate="tanh"),
}
CASES: dict[str, Callable[[], AbstractBijection]] = {
    "affine": lambda: Affine(jnp.zeros(3), 2.0),
    "affine scalar": lambda: Affine(1.0, 0.5),
    "triangular affine": lambda: _triangular(3),
    "identity": lambda: Identity((2, 2), (COND_DIM,)),
    "permutation": lambda: Permutation([2, 0, 1]),
    "dct": lambda: DCT(3),
    "yeo-johnson": lambda: YeoJohnson(np.array([-0.5, 1.0, 2.7]), -1.5, np.array([2.0, 1.0, 3.0])),
    "elementwise power tails": lambda: Elementwise(3, TailTransform()),
    "chain": lambda: Chain([_triangular(3), Coupling(_KEY, 3, RationalQuadraticSpline(), cond_dim=COND_DIM)]),
    "twice inverted and reshaped": lambda: Invert(
        Invert(Reshape(Coupling(_KEY, 4, AffineUnivariate(), cond_dim=COND_DIM), (2, 2)))
    ),
    "given": lambda: Given(Coupling(_KEY, 3, AffineUnivariate(), cond_dim=COND_DIM), np.ones(COND_DIM)),
    "scan": lambda: Scan(eqx.filter_vmap(_layer)(jax.random.split(_KEY, 4))),
    **LAYERS,
    **FLOWS,
}
# the other direction goes by sweeps or numerically
QUICK_INVERSE = ("maf", "nsf_autoregressive", "bernstein", "tarflow", *GAUSSIANIZATION)
# inverses without a closed form
NUMERICAL = ("naf", "bnaf", "planar", "sylvester", "bernstein", "residual", "mixture", *GAUSSIANIZATION)


def quick_direction(name: str) -> str:
    """The direction in closed form, which is differentiated; the Jacobian of the other is the inverse of its."""
    return "inverse_and_log_det" if name.startswith(QUICK_INVERSE) else "transform_and_log_det"


# What the quick suite tries: a layer of each kind, every recipe in double precision. Not these, which are made of what
# others have; mixtures of logistics have test_mixture_cdf.py.
_SLOW = (
    *("chain", "scan", "mixture coupling", "multiscale layers", "coupling spline conditional", "coupling tails"),
    *("coupling affine", "coupling affine conditional", "coupling spline", "mixture of logistics"),
    *("matrix exponential", "matrix exponential with bias"),
    *("realnvp with tails 3d conditional", "tarflow of blocks 5d conditional"),
    *("iaf with adjacency 5d conditional", "gaussianization 5d conditional", "coupling_gaussianization 5d conditional"),
)
# the recipes that compile longest, in two dimensions and without a condition, which saves a third; the others have both
_QUICK_2D = ("naf", "bnaf", "nsf_coupling", "bernstein", "residual")


def _is_quick(name: str) -> bool:
    if name in _SLOW or name not in FLOWS:
        return name not in _SLOW
    return name.endswith(" 2d" if name.split()[0] in _QUICK_2D else ("5d conditional", "4d conditional"))


QUICK_DOUBLE = [name for name in CASES if _is_quick(name)]
# In single precision sweeps and a closed form; roots, mixtures and planar maps have tests of their own in both.
QUICK_SINGLE = ["maf 2d", "radial 2d"]
# the score of the others is that of any bijection, by its inverse, which is numerical here; or goes through layers
# whose scores are tested; or has a test of its own
_WITHOUT_SCORE = (
    *("naf", "bnaf", "sylvester", "nsf_coupling", "nsf_autoregressive", "bernstein", "tarflow", "residual"),
    *("nice", "glow", "maf", "iaf", "matrix_exponential", "multiscale", *GAUSSIANIZATION),
)
WITH_SCORE = [name for name in QUICK_DOUBLE if not name.startswith(_WITHOUT_SCORE)]
# public, and not among these cases: the file that tests it
ELSEWHERE = {
    "CircularSpline": "test_circular.py",
    "Frozen": "test_arguments.py",
    "Guided": "test_images.py",
    "StandardizedCondition": "test_structure.py",
    "EmbeddedCondition": "test_embedded.py",
    "ffjord": "continuous/test_flow.py",
    "with_tails": "test_tails.py has the map, and it is a slow case",
    "MixtureCDF": "test_mixture_cdf.py",
    "gaussianization": "gaussianization/test_rbig.py and test_warm_start.py, and it is a slow case",
    "coupling_gaussianization": "gaussianization/test_warm_start.py",
    "coupling": "nice, realnvp and nsf_coupling are made by it",
    "autoregressive": "maf, nsf_autoregressive and bernstein are made by it",
}


def perturbed[T](module: T, seed: int = 0, scale: float = 0.05) -> T:
    """`module` with noise on every parameter: at the start all log-dets are 0, and a test of them would be vacuous."""
    params, static = eqx.partition(module, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(params)
    return eqx.combine(unravel(flat + scale * jax.random.normal(jax.random.PRNGKey(seed), flat.shape)), static)
