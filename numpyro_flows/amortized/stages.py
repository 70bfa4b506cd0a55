"""Stages of `FlowVI` for one data set: the amortised flow's verdict, and a start from its draws."""

from dataclasses import dataclass

import equinox as eqx
import numpy as np

from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.inference.certificate import Draws, resample
from numpyro_flows.inference.compiled import drawing, scoring
from numpyro_flows.inference.flow_component import FlowComponent
from numpyro_flows.inference.gaussian import fit_gaussian, moment_matched
from numpyro_flows.inference.judge import judge
from numpyro_flows.inference.stages import Context, Fit, surveyed
from numpyro_flows.inference.survey import Survey, look_around, search, weigh
from numpyro_flows.training.ahead import Ahead
from numpyro_flows.training.reasons import Reason

_STARTS = 16


@dataclass(frozen=True)
class Judged:
    """The stage that takes a bijection as it is, and checks it on fresh draws and by a search."""

    bijection: AbstractBijection

    def __call__(self, context: Context, fit: Fit) -> Fit:
        settings, density, target = context.settings, context.density, context.target
        arrays = eqx.filter(self.bijection, eqx.is_array)
        draw, log_prob = _compiled(self.bijection, context)
        with context.clock.stage("compilation"):
            draw.wait()
        with context.clock.stage("certificate"):
            num_blocks = -(-settings.certificate_draws // settings.block)
            seeds = context.seeds.many(num_blocks, "verdict")
            blocks = [Draws(*map(np.asarray, draw(arrays, seed))) for seed in seeds]
            draws = weigh(blocks, settings)
            density.values_alone["flow"] += len(draws.log_weight)
            all_draws = Draws(*map(np.concatenate, zip(*blocks)))
            kept = resample(all_draws.log_weight, len(all_draws.x), context.seeds.rng("moments"))
            gaussian = moment_matched(all_draws.x[kept], settings)
            survey = Survey(coordinates=target.coordinates)
            certificate = judge(draws, survey, settings)
            if certificate.certified and context.verify != "weights":
                prior = context.prior(context.seeds, settings.prior_draws)
                rng = context.seeds.rng("survey")
                survey = look_around(density, rng, gaussian, prior, target.coordinates, settings)
                component = FlowComponent(arrays, draw, log_prob, settings.block)
                survey = search(density, gaussian, survey, component.log_prob, certificate.log_evidence, rng, settings)
                certificate = judge(draws, survey, settings)
        return Fit(
            loc=gaussian.loc,
            scale=gaussian.scale,
            bijection=self.bijection,
            certificate=certificate,
            log_weights=np.asarray(draws.log_weight, np.float64),
            survey=survey,
            reason=Reason.UNTRAINED,
            draw=draw,
            log_prob=log_prob,
        )


@dataclass(frozen=True)
class StartFrom:
    """The stage that fits a Gaussian from starts among the draws of a bijection, taken by their weights."""

    bijection: AbstractBijection

    def __call__(self, context: Context, fit: Fit) -> Fit:
        rng = context.seeds.rng("gaussian")
        draw, _ = _compiled(self.bijection, context)
        draws = Draws(*map(np.asarray, draw(eqx.filter(self.bijection, eqx.is_array), context.seeds.one("starts"))))
        starts = draws.x[resample(draws.log_weight, _STARTS, rng)].astype(context.density.dtype)
        with context.clock.stage("compilation"):
            context.density.wait()
        with context.clock.stage("gaussian"):
            return surveyed(context, fit_gaussian(context.density, rng, starts, context.settings))


def _compiled(bijection: AbstractBijection, context: Context) -> tuple[Ahead, Ahead]:
    """Draws and log densities; all data sets share what is compiled."""
    target, block = context.target, context.settings.block
    arrays, static = eqx.partition(bijection, eqx.is_array)
    points = np.zeros((block, target.dim), context.density.dtype)
    with context.clock.stage("tracing"):
        draw = Ahead(context.pool, drawing(target, static, block), arrays, np.zeros(4, np.uint32))
        return draw, Ahead(context.pool, scoring(static), arrays, points)
