"""Our engine against arithmetic we did not write into it: NumPy in float64, and transformers."""
