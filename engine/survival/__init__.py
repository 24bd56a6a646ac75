"""What brings a run through signals, dead and hanging ranks, and steps that are not finite."""
