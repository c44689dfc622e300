"""Whether a response is right: verdicts, rewards, and the grading of a user's rows."""
