"""Densities of data: `fit_density`, in `fit.py`, and functions of a fitted density."""
