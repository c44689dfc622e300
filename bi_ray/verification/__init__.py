"""Whether a response is right: verdicts with their reasons, rewards, and grades of a user's rows."""
