"""One optimizer step after another: the model with its objective, the engines that step it, checkpoints, the loop."""
