"""What a run amounts to: evaluation, probes, release, record, report."""
