"""Each finding as its radiographic sign: how it changes the chest's shape, and what it adds to the shadow."""

from cohort.phantom.signs.sign import Sign

SIGNS: dict[str, Sign] = {}
"""The sign of each finding that can be seen, by its label."""
