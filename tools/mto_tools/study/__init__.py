"""Train a recipe with and without MTO from the same seeds, and report what that did."""
