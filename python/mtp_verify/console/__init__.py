"""What people see while commands run, and what commands need of the machine."""
