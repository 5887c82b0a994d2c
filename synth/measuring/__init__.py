"""Numbers about whole sets of images: the encoders, the distances between sets and the fidelity tables."""
