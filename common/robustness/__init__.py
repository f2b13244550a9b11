"""Evaluation of what can go wrong, shared by both sides: leakage, lying sites, noisy and hostile inputs."""
