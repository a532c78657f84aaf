"""Features: where backbones and tasks meet, and where what they give is kept."""
