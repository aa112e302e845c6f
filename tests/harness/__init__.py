"""What the tests stand on: a real server, a client that keeps every response, and the recordings of another engine."""
