"""What answers the policy's turns: functions that it may call, games, classes of the user's own."""
