"""What becomes of a job whose ranks have ended: done, another start, or an end with its reason."""
