//! pipeline.

pub mod ingest;
