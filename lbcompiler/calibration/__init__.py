"""From a float model and samples of its inputs to what is known of every linear's input."""
