"""How images are judged: rules and their thresholds, the critic, the encoders and distances of fidelity."""
