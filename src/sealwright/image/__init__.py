"""Images, built from pinned files alone: of guests and of containers."""
