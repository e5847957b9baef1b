"""Judges samples of a labelled data set beside real images that were held out."""
