"""What `/metrics` says: figures that the parts keep themselves, put into Prometheus's words."""
