"""Records: what was measured, of what exactly, and where it is kept."""
