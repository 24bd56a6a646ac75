"""Many runs by one command: sweeps, searches, and chains of programs."""
