"""Rounds of images: run as stages of their own, pooled into one plan and one table of images."""
