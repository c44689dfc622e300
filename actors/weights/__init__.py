"""How the learners' weights get into the engines."""
