"""The HTTP server: jobs that survive a kill, workers that may die, and the API and page in front of them."""
