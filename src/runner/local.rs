//! Attempts as host processes.
