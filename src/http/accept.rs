//! Which form an answer is to have (RFC 9110, section 12.5.1).

use axum::http::{HeaderMap, header};

use super::error::ApiError;

/// Server-sent events.
pub(super) const EVENT_STREAM: &str = "text/event-stream";
/// One JSON object a line.
pub(super) const NDJSON: &str = "application/x-ndjson";
/// Plain text.
pub(super) const TEXT: &str = "text/plain";

/// The form that the caller likes best; of those that are liked the same, the first.
pub(super) fn choose(headers: &HeaderMap, offered: &'static [&'static str]) -> Result<&'static str, ApiError> {
    let ranges: Vec<(String, u16)> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(range)
        .collect();
    if ranges.is_empty() {
        return offered.first().copied().ok_or(ApiError::NotAcceptable(offered));
    }
    let mut best = None;
    for form in offered {
        let quality = quality(form, &ranges);
        if quality > best.map_or(0, |(quality, _)| quality) {
            best = Some((quality, *form));
        }
    }
    best.map(|(_, form)| form).ok_or(ApiError::NotAcceptable(offered))
}

/// A media range and its quality in thousandths.
fn range(text: &str) -> Option<(String, u16)> {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().filter(|name| !name.is_empty())?.to_ascii_lowercase();
    let quality = parts
        .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
        .map_or(Some(1.0), |quality| quality.parse::<f32>().ok())?;
    // Between 0 and 1000 after the clamp; a NaN becomes 0.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let quality = (quality.clamp(0.0, 1.0) * 1000.0).round() as u16;
    Some((name, quality))
}

/// How much a form is liked: the most specific range that covers it decides.
fn quality(form: &str, ranges: &[(String, u16)]) -> u16 {
    let family = form.split_once('/').map_or(form, |(family, _)| family);
    let wanted = [form.to_owned(), format!("{family}/*"), "*/*".to_owned()];
    wanted
        .iter()
        .find_map(|name| ranges.iter().find(|(range, _)| range == name))
        .map_or(0, |(_, quality)| *quality)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_liked_form_is_chosen() {
        let choose = |accept: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, accept.parse().expect("a header value"));
            }
            choose(&headers, &[TEXT, NDJSON, EVENT_STREAM]).ok()
        };
        for (accept, form) in [
            (None, Some(TEXT)),
            (Some(""), Some(TEXT)),
            (Some("*/*"), Some(TEXT)),
            (Some("text/event-stream"), Some(EVENT_STREAM)),
            (Some("text/plain;q=0.5, application/x-ndjson"), Some(NDJSON)),
            (Some("TEXT/PLAIN; charset=utf-8"), Some(TEXT)),
            (Some("text/*, text/plain;q=0"), Some(EVENT_STREAM)),
            (Some("application/*"), Some(NDJSON)),
            (Some("application/json"), None),
            (Some("text/plain;q=0"), None),
            (Some("text/plain;q=nan"), None),
            (Some("text/plain;q=x"), Some(TEXT)),
        ] {
            assert_eq!(choose(accept), form, "{accept:?}");
        }
    }
}
