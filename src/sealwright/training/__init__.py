"""Training across parties who do not trust each other. Engines are adapters; what they carry is made here."""
