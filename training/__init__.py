"""What a training run needs around its loop: options, its folder, checkpoints, logs, reports."""
