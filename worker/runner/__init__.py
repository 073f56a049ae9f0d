"""The process that does one task: confined, used once, and the only worker code that imports torch and the engine."""
