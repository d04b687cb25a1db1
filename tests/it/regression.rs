//! One test for each bug that was found, named after what was seen.
