"""What leaves a run: accepted images and generator, with all that must be said of them."""
