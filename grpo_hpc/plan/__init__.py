"""From a run file to a plan: who does what, how much memory it takes. Pure, free of torch, well under a second."""
