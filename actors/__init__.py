"""The cluster: thin Ray shells over plain classes, and the stages of a run."""
