"""From a flow to draws that can be trusted: importance sampling and its diagnostics."""

from numpyro_flows.sampling.importance import Certificate as Certificate
from numpyro_flows.sampling.importance import Draws as Draws
from numpyro_flows.sampling.importance import certify as certify
from numpyro_flows.sampling.importance import relative_ess as relative_ess
from numpyro_flows.sampling.importance import resample as resample
from numpyro_flows.sampling.psis import smooth as smooth
