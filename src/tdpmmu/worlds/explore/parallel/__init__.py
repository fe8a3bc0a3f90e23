"""A search by several worker processes: the states, and the threads' code, divided among them."""
