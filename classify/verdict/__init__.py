"""The verdict: one answer from one endpoint, what more it would take, and how often test was looked at."""
