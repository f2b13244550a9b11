"""Differential privacy: mechanisms, exact noise, accounting, plans and claims, audits."""
