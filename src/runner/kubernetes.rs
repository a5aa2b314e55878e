//! Attempts as pods.
