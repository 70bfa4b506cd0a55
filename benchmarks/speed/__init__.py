"""Seconds, evaluations and memory of FlowVI on simulated data, compared with NUTS."""
