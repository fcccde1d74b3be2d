"""What limits a hostile worker: bounds, robust means, floors, gates. Spec: docs/spec/privacy.md, Robustness."""
