"""The sections of a report: each reads what a run or a command left behind, and none imports torch."""
