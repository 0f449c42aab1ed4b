"""The shell around the pure core: Faust and Kafka, Redis, HTTP, the command line."""
