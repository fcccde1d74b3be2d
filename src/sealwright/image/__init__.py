"""Guest images: built reproducibly, measured without a boot, and what runs inside them."""
