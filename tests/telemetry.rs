//! What the program tells of itself: log lines for machines, and traces as a collector gets them.

mod telemetry {
    mod logs;
    mod program;
    mod traces;
}
