"""What the flows themselves cost, beside their peers: speed, compile time, the slow direction, splines."""
