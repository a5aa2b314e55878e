//! Wiring: what makes a program of the other modules.

pub mod openapi;
pub mod postgres;
