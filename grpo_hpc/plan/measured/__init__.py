"""What runs have measured: how far off estimates were, and what the plan of the next run can take from one."""
