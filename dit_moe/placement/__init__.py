"""Where experts should lie, so that fewer tokens travel: by what a trained model was seen to do."""
