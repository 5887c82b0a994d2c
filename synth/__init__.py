"""What is made: autoencoder, fine-tuning, generation, filter. Imports ``classify`` for its critic."""
