"""Real images taken away on purpose, so that one knows what they would have been worth."""
