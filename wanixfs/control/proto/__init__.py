"""The wire's messages. `taskrun_v1.proto` is their source; `scripts/proto` makes the rest of this package from it."""
