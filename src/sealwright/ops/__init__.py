"""What operators do: release a build, roll it out."""
