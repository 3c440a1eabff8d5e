"""Looking at runs: pages for a browser, tables and texts for a terminal."""
