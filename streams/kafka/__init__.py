"""Faust and Kafka: topics, the batching transport, the agents and the application."""
