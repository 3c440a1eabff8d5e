"""The pages of a folder of runs while they work, from a server on this machine for whoever has its address."""
