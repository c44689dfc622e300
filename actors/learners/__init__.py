"""The learner group: Ray Train's workers, their process group and training loops."""
