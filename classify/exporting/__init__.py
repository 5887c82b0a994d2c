"""A classifier that leaves its run: a folder of its own, read again without the run, and used on anybody's images."""
