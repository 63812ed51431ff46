"""What a request costs before it runs: operations, memory and time, on a named GPU."""
