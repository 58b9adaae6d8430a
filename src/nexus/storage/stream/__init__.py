"""Where streams keep their messages. Layer: storage."""
