"""Whatever is public has its laws in the quick suite, or is named with the file that tests it."""

import inspect

import equinox as eqx
import jax
import pytest

from numpyro_flows import bijections, flows
from numpyro_flows.bijections import AbstractBijection, AbstractUnivariate
from tests.bijections.cases import CASES, ELSEWHERE, QUICK_DOUBLE, QUICK_SINGLE

RECIPES = {name for name, recipe in vars(flows).items() if inspect.isfunction(recipe)}
CLASSES = {
    name
    for name, cls in vars(bijections).items()
    if inspect.isclass(cls) and issubclass(cls, (AbstractBijection, AbstractUnivariate)) and not inspect.isabstract(cls)
}


def test_every_recipe_is_a_quick_case():
    tried = {name.split()[0] for name in QUICK_DOUBLE}
    assert RECIPES - tried - set(ELSEWHERE) == set()


def test_every_class_is_in_a_quick_case():
    seen: set[str] = set()

    def visit(node):
        if isinstance(node, eqx.Module):
            seen.add(type(node).__name__)
            for child in vars(node).values():
                jax.tree.map(visit, child, is_leaf=lambda child: isinstance(child, eqx.Module))

    for name in (*QUICK_DOUBLE, *QUICK_SINGLE):
        visit(eqx.filter_eval_shape(CASES[name]))
    assert CLASSES - seen - set(ELSEWHERE) == set()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_tested_elsewhere_is_public_and_is_not_a_case(name):
    assert name in RECIPES | CLASSES
