"""CAV-MAE: encoder, decoder, masked autoencoder."""
