"""A bundle: what `bundle.json` says, the graphs it must have, and the hashes of its files."""
