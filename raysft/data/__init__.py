"""From a data source to batches: samples, their tokens and labels, the resumable order in which they are seen."""
