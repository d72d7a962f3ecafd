"""Where the measurements of a run go: metrics.jsonl, TensorBoard, and other trackers."""
