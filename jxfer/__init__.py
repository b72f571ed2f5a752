"""jxfer: transfer learning with image classifiers in JAX."""
