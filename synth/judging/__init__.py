"""How images are judged: what is read of them, the rules and their thresholds, the critic."""
