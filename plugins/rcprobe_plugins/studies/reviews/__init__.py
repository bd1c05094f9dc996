"""What readers of the paper still ask, each answered by an experiment: one figure, one sentence, an interval."""
