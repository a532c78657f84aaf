"""Tasks: named data sets, their sources and splits, and the transforms that turn an image into pixels."""
