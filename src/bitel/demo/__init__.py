"""All of it on one machine: the service, a phone for a carrier, and calls between them."""
