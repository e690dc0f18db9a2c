"""One function a scenario: it says what it does to the fleet and what it demands of it."""
