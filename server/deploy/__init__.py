"""A real federation's server: SuperLink, gateway, operators, runs."""
