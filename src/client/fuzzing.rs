//! What fuzz targets call of the client's readers.

use super::git_url::Place;

/// Reads the place of a context, as `kiln build` takes it.
pub fn place(text: &str) {
    drop(Place::parse(text));
}
