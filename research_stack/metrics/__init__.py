"""From arrays to numbers with their intervals. numpy and scipy only."""
