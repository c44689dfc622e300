"""Files and folders that are whole or absent, checked when read, and private where they must be."""
