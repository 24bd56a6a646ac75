"""Released networks measured side by side: accuracy, calibration, confusion, robustness, cost and speed."""
