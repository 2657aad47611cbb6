"""What a training program imports: join, restore, fence, report, save. Imports no torch."""
