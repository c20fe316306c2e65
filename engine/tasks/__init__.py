"""What the two programs run: pretraining and fine-tuning."""
