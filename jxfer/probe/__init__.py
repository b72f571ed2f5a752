"""Probes: linear classifiers and nearest neighbours on features."""
