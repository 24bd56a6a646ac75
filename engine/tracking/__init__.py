"""What follows the event log: MLflow, TensorBoard."""
