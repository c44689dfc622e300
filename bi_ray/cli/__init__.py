"""The command line `bi-ray COMMAND`; the topmost package, which nothing imports."""
