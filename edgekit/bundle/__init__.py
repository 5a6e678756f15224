"""The bundle: what the host hands to the device, and the only thing the two share."""
