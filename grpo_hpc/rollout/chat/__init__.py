"""What a model's chat template does, found out by asking it, and how answers in its format are read."""
