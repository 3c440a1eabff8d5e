"""Families with a vision tower before the decoder."""
