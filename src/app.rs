//! Wiring: what makes a program of the other modules.

pub mod postgres;
