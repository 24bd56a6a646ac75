"""What becomes of runs: their state, their logs, stopping them and sending them back to the queue."""
