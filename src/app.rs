//! Wiring: what makes a program of the other modules.

pub mod cli;
pub mod commands;
pub mod config;
pub mod dev;
pub mod openapi;
pub mod postgres;
pub mod secrets;
pub mod serve;
pub mod telemetry;
