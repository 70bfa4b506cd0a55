"""Continuous flows: bijections defined by an ordinary differential equation."""

from numpyro_flows.continuous.divergence import AbstractDivergence as AbstractDivergence
from numpyro_flows.continuous.divergence import Exact as Exact
from numpyro_flows.continuous.divergence import Hutchinson as Hutchinson
from numpyro_flows.continuous.divergence import HutchPlusPlus as HutchPlusPlus
from numpyro_flows.continuous.few_steps import FewSteps as FewSteps
from numpyro_flows.continuous.fields import AbstractField as AbstractField
from numpyro_flows.continuous.fields import AbstractFieldWithDivergence as AbstractFieldWithDivergence
from numpyro_flows.continuous.fields import LinearField as LinearField
from numpyro_flows.continuous.fields import MLPField as MLPField
from numpyro_flows.continuous.flow import ContinuousFlow as ContinuousFlow
from numpyro_flows.continuous.flow import Trajectory as Trajectory
from numpyro_flows.continuous.matching import AbstractPath as AbstractPath
from numpyro_flows.continuous.matching import ConditionalOT as ConditionalOT
from numpyro_flows.continuous.matching import FlowMatching as FlowMatching
from numpyro_flows.continuous.matching import RectifiedFlow as RectifiedFlow
from numpyro_flows.continuous.matching import VariancePreserving as VariancePreserving
from numpyro_flows.continuous.potential import OTFlowField as OTFlowField
from numpyro_flows.continuous.potential import PotentialField as PotentialField
from numpyro_flows.continuous.solving import adaptive as adaptive
from numpyro_flows.continuous.training_form import in_training as in_training
from numpyro_flows.continuous.training_form import num_evaluations as num_evaluations
from numpyro_flows.continuous.training_settings import Energies as Energies
from numpyro_flows.continuous.training_settings import Training as Training
