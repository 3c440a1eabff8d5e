"""Megatron around the policy: layouts, optimizer, pipeline schedules, the device."""
