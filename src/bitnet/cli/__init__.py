"""The `bitnet` command: one module a subcommand, on top of what `import bitnet` offers."""
