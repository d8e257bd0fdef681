"""Find the weights of MTO for one recipe, model and data set, by short paired runs."""
