"""Work of the commands that go on until a signal ends them: `serve` and `host`."""
