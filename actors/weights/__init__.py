"""How the learners' weights reach the engines."""
