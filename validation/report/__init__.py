"""What a proof tells: report.json for programs, report.md and report.html for people."""
