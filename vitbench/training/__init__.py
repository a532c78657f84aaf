"""Training a backbone on a task: recipes, the stream of augmented images, the loop, checkpoints, what comes out."""
