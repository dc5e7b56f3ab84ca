"""The network: its config, its layer sizes, its rotary tables, and the step, written once for all op sets."""
