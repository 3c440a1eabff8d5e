"""Looking at runs after the fact: one page for a browser, tables and texts for a terminal."""
