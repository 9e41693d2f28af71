"""What is written to a terminal: text made safe for it, lines folded for it, and bars of long work."""
