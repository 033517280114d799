"""The commands of `bitel`. Each module imports what it needs when its command runs."""
