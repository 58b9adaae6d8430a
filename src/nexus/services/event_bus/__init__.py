"""Changes and other events, brought to whoever subscribes."""
