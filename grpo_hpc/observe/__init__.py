"""What a run tells about itself: events, metrics, completions, and the display of all that."""
