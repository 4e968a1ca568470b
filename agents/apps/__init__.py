"""What people do with a trained run: dreams, play, rewards and reuse."""
