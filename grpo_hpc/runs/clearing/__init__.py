"""What of runs may go: directories that were never started, old ones, and what dead runs have left."""
