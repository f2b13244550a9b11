"""Evaluation of what can go wrong, shared by both sides: leakage attacks."""
