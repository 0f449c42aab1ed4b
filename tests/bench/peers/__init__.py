"""Programs on other stream processors that do a segmenter worker's work, to be measured beside it."""
