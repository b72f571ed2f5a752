"""Ablations: grids of runs, and claims about them."""
