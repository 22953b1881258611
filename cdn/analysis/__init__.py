"""What a trained model has learned, looked at from the inside."""
