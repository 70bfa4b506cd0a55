"""The cost of the flows themselves compared with other libraries: speed, compile time, slow direction, splines."""
