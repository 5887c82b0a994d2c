"""The vocabulary of findings, and how cohorts with different labels become one."""
