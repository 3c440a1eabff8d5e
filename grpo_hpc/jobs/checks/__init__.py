"""What is looked at before a model is loaded: files and rewards at submission, nodes at the start of a job."""
