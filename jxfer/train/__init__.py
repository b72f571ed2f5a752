"""The trainer: config, state, step, devices, checkpoints, loop."""
