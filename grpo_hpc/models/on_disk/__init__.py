"""What a model is on disk: tensors as bytes in files, and the one reader of a model folder. Free of torch and numpy."""
