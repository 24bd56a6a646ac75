"""Which sample stands where in which batch: pure functions, of numbers alone."""
