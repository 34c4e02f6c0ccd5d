"""The GPU programme; `python -m experiments.gpu --help` says what it does."""
