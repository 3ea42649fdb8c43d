"""EngineSettings that keep an inference engine or a framework inside its lease."""
