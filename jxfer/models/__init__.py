"""Architectures: modules, heads, and the registry that is the seam to the rest."""
