"""What a cluster is: its profile, what Slurm says and can do, where secrets lie."""
