"""What a fine-tuned model says of videos: ``python -m engine.predict``."""
