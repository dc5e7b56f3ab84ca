"""The thin runtime: loads an exported artifact through MindSpore Lite and generates text."""
