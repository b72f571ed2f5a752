"""Benchmarks, tables for the docs, and launchers; run as `python -m scripts.NAME` from the root."""
