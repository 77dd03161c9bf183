"""The commands of ``vse-scale``, a module each; what they need is imported when they run."""
