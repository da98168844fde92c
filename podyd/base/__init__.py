"""What any service needs, whatever it is about: errors, tasks, logs, fair waiting, systemd."""
