"""The report's parts: what a run left behind (evidence), how it is shown (blocks), and the chapters."""
