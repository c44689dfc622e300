"""The command line: `bi-ray COMMAND`. Stands above every other package; nothing imports it."""
