"""Demo of the service with the built-in phone as the carrier, on one machine."""
