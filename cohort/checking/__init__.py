"""What is wrong with a cohort, and whether it leaks: images, patients and labels that are where they must not be."""
