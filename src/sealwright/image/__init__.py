"""Guest images: what they are made of, and what they measure to."""
