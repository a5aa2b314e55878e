//! What the program tells of itself: log lines for machines, and traces as a collector gets them.

mod telemetry {
    mod logs;
    #[path = "../shared/program.rs"]
    mod program;
    #[path = "../shared/token.rs"]
    mod token;
    mod traces;
}
