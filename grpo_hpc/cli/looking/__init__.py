"""Commands that look at runs after the fact."""
