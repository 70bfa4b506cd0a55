"""Posteriors of all data sets that a model can make, by one conditional flow."""
