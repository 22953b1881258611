"""Several processes: what they gain, over which links, and the page that says so."""
