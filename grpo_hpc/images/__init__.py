"""Container images: what goes into them, how they are built, and whether one holds what it should."""
