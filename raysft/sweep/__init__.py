"""The sweep over objectives: search space, Optuna through Ray Tune, and the groups of workers that run the trials."""
