"""What a run tells about itself beside its metrics: profiles of its steps, and an endpoint that others ask."""
