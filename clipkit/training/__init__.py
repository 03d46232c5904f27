"""Step 4, update: the step, the loop, checkpoints and the run's report."""
