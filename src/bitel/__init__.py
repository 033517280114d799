"""bitel: recordings played to phones over your own SIP trunks."""

__version__ = "0.1.0"
