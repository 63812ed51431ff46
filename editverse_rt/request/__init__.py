"""A request: its instruction, its inputs, and what both come to in integers."""
