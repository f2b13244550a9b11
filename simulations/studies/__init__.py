"""Studies: many runs behind one page."""
