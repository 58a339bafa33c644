"""What the machine has: cards, memory, disk, versions."""
