//! `kiln openapi`: the description of the API, as it is kept in `openapi/openapi.json`.

/// The document, ready to be written to a file.
pub fn document() -> Result<String, serde_json::Error> {
    let mut text = crate::http::openapi().to_pretty_json()?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_in_the_tree_is_current() {
        let file = include_str!("../../openapi/openapi.json");
        assert!(
            document().expect("serialises") == file,
            "openapi/openapi.json isn't what the code says: run `make openapi` and commit the result"
        );
    }
}
