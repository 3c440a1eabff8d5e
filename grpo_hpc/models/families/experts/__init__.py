"""Families with experts in some layers or in all."""
