"""The commands of ``segmenter``, a file for what belongs together."""
