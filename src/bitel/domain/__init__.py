"""The domain: calls, what a SIP answer means for them, money and numbers. No I/O."""
