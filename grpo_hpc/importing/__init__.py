"""From an ms-swift command to a run file: reads scripts without running them, and accounts for every flag."""
