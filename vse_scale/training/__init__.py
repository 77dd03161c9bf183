"""Training: the loop, DeepSpeed, schedules and checkpoints."""
