//! Builders: one file each turns a specification into a [`RunPlan`](kiln_agent::wire::plan::RunPlan) and a failed
//! step's report into a failure.
