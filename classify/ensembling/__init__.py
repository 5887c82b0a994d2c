"""Predictions of many made one: of several models, of folds, of distorted copies, of a study's images."""
