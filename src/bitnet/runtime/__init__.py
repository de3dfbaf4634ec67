"""Serving in this process: which sequences are computed together, and what becomes of their tokens."""
