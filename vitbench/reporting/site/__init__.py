"""The report: records as a static site that opens from disk, without a network."""
