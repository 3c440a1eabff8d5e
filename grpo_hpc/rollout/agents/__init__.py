"""Programs that talk to the policy as they would to any model behind a chat endpoint."""
