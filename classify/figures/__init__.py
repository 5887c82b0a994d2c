"""Plots and contact sheets, for pages and for the eye."""
