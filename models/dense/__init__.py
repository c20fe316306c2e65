"""Dense grounding: similarities of every sound token with every picture token, and what is learned from them."""
