"""Figures and tables of the documentation: one file each, `compute` and `draw`."""
