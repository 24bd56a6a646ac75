"""From a recipe and a cluster file to a job: check, snapshot, record, submit, and what runs in each task."""
