"""Attacks on a federation and on its models, for evaluation: Byzantine clients, poison, leakage."""
