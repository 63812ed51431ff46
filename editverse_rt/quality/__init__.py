"""Held-out edits with known right answers, and the check of a backend against them."""
