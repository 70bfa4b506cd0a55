"""Recipes: functions from a key and a dimension to a bijection. docs/choosing-a-flow.md explains when to use which."""

from numpyro_flows.flows.autoregressive import autoregressive as autoregressive
from numpyro_flows.flows.autoregressive import bernstein as bernstein
from numpyro_flows.flows.autoregressive import iaf as iaf
from numpyro_flows.flows.autoregressive import maf as maf
from numpyro_flows.flows.autoregressive import naf as naf
from numpyro_flows.flows.autoregressive import nsf_autoregressive as nsf_autoregressive
from numpyro_flows.flows.autoregressive_networks import bnaf as bnaf
from numpyro_flows.flows.autoregressive_networks import tarflow as tarflow
from numpyro_flows.flows.continuous import ffjord as ffjord
from numpyro_flows.flows.continuous import matrix_exponential as matrix_exponential
from numpyro_flows.flows.coupling import coupling as coupling
from numpyro_flows.flows.coupling import glow as glow
from numpyro_flows.flows.coupling import multiscale as multiscale
from numpyro_flows.flows.coupling import nice as nice
from numpyro_flows.flows.coupling import nsf_coupling as nsf_coupling
from numpyro_flows.flows.coupling import realnvp as realnvp
from numpyro_flows.flows.gaussianization import coupling_gaussianization as coupling_gaussianization
from numpyro_flows.flows.gaussianization import gaussianization as gaussianization
from numpyro_flows.flows.residual import planar as planar
from numpyro_flows.flows.residual import radial as radial
from numpyro_flows.flows.residual import residual as residual
from numpyro_flows.flows.residual import sylvester as sylvester
from numpyro_flows.flows.stack import Recipe as Recipe
from numpyro_flows.flows.tails import with_tails as with_tails
