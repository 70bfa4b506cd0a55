"""Normalizing flows for Bayesian inference with NumPyro."""

import lazy_loader

# names are imported on first use, from the places in `__init__.pyi`: importing the package costs nothing
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
