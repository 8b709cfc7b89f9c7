"""Computes what every kernel must compute, in plain torch: slowly, and obviously right."""
