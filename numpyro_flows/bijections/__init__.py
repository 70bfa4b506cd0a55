"""The maths of flows: Equinox modules that map one event and know their log-determinant."""

from numpyro_flows.bijections.affine import Affine as Affine
from numpyro_flows.bijections.affine import TriangularAffine as TriangularAffine
from numpyro_flows.bijections.base import AbstractBijection as AbstractBijection
from numpyro_flows.bijections.compose import Chain as Chain
from numpyro_flows.bijections.compose import Frozen as Frozen
from numpyro_flows.bijections.compose import Invert as Invert
from numpyro_flows.bijections.compose import Scan as Scan
from numpyro_flows.bijections.coupling import Coupling as Coupling
from numpyro_flows.bijections.elementwise import Elementwise as Elementwise
from numpyro_flows.bijections.permutation import Permutation as Permutation
from numpyro_flows.bijections.score import transform_with_score as transform_with_score
from numpyro_flows.bijections.spline import RationalQuadraticSpline as RationalQuadraticSpline
from numpyro_flows.bijections.tails import SinhArcsinh as SinhArcsinh
from numpyro_flows.bijections.univariate import AbstractUnivariate as AbstractUnivariate
from numpyro_flows.bijections.univariate import AffineUnivariate as AffineUnivariate
