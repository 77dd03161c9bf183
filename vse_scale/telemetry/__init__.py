"""What a run says while it goes: progress, log lines and metrics."""
