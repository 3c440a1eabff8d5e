"""Slow implementations in NumPy and float64, written from the papers: loops over completions and tokens, no packing."""
