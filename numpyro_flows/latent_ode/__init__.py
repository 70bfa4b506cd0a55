"""Irregular series as observations of a path that follows a learned differential equation."""
