//! Attempts as pods.

pub mod config;
mod observe;
mod pod;
