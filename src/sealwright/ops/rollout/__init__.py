"""Rollouts: a new build, step by step, each signed, logged and gated. Spec: docs/spec/rollout.md."""
