"""How the policy's weights come into an engine, and how it is checked that they did."""
