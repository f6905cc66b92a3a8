"""Sessions behind standard protocols."""
