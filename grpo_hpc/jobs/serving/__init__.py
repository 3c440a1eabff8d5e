"""vLLM servers on nodes of their own: started on each node, watched by the supervisor."""
