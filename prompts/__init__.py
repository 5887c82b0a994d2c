"""What to ask for: scarcity -> budget -> a plan with one row per image to make. Imports only ``cohort``."""
