//! What the caller says the archive's SHA-256 is: `Content-Digest` or `Repr-Digest` (RFC 9530), the older `Digest`
//! (RFC 3230), or the query parameter `sha256`.

use axum::http::HeaderMap;
use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::http::error::ApiError;

/// A SHA-256.
pub(super) type Sha256Bytes = [u8; 32];

/// The digests that the headers tell. Algorithms that aren't known are passed over, as the RFCs want it.
pub(super) fn told(headers: &HeaderMap) -> Result<Vec<Sha256Bytes>, ApiError> {
    let mut told = Vec::new();
    for name in ["Content-Digest", "Repr-Digest", "Digest"] {
        for value in headers.get_all(name) {
            let invalid = || ApiError::InvalidHeader {
                name,
                detail: "expected the SHA-256 of the body in base64, such as `sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:`",
            };
            let value = value.to_str().map_err(|_| invalid())?;
            for member in value.split(',') {
                let (algorithm, digest) = member.trim().split_once('=').ok_or_else(invalid)?;
                if !algorithm.eq_ignore_ascii_case("sha-256") {
                    continue;
                }
                let digest = digest
                    .strip_prefix(':')
                    .and_then(|digest| digest.strip_suffix(':'))
                    .unwrap_or(digest);
                let bytes = BASE64_STANDARD.decode(digest).map_err(|_| invalid())?;
                told.push(bytes.try_into().map_err(|_| invalid())?);
            }
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_in_both_notations() {
        let digest = [7; 32];
        let text = BASE64_STANDARD.encode(digest);
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a header value"));
            told(&headers).map_err(|error| error.to_string())
        };
        assert_eq!(read("content-digest", &format!("sha-256=:{text}:")), Ok(vec![digest]));
        assert_eq!(
            read("repr-digest", &format!("sha-512=:AAAA:, sha-256=:{text}:")),
            Ok(vec![digest])
        );
        assert_eq!(read("digest", &format!("SHA-256={text}")), Ok(vec![digest]));
        assert_eq!(read("digest", "md5=AAAA"), Ok(vec![]));
        for bad in ["sha-256", "sha-256=:AAAA:", "sha-256=:***:", "x"] {
            assert!(read("content-digest", bad).is_err(), "{bad}");
        }
    }
}
