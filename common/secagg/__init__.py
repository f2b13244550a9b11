"""Secure sums: the server learns the sum of the sites' integer vectors and nothing else of any of them.

Bonawitz et al. 2017 (pairwise and self masks, Shamir shares) with keys and shares of many rounds dealt in one set-up,
Bell et al. 2020 for the neighbour graph, and an agreement on the survivor set inside the unmasking exchange. The
protocol, its argument and what it does not protect against: docs/explanation/secure-sums.md. Nothing here knows Flower.
"""
