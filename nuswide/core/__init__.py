"""What every part uses: processes, signals, the allocator."""
