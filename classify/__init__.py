"""What is learnt: arms, training, prediction, metrics, comparison, report. Imports ``cohort`` and ``prompts``."""
