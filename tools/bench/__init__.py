"""What the step benchmark is made of: a random model of a real shape, its data, and the peers it is compared with."""
