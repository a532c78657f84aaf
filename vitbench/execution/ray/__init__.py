"""The Ray executor: the jobs of a run on all processors of a machine, or of many. Nothing outside this folder imports ray."""
