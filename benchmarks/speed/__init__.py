"""Seconds, evaluations and memory of FlowVI on simulated data, beside NUTS."""
