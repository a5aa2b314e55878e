use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use proptest::{prelude::*, sample::Index};
use tempfile::NamedTempFile;

use super::*;

fn masker(secrets: &[&str]) -> Masker {
    let secrets: Vec<_> = secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect();
    Masker::new(&secrets).unwrap().unwrap()
}

fn masked(masker: &Masker, text: &str) -> String {
    masker.mask_text(text)
}

/// Masks a line that comes in pieces.
fn in_pieces(masker: &Masker, line: &[u8], cuts: &[Index]) -> Vec<u8> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(line.len() + 1)).collect();
    cuts.extend([0, line.len()]);
    cuts.sort_unstable();
    let (mut held, mut out) = (Held::default(), Vec::new());
    for (number, pair) in cuts.windows(2).enumerate() {
        let ends = number + 2 == cuts.len();
        out.extend(masker.mask_piece(&mut held, &line[pair[0]..pair[1]], ends));
        assert!(held.bytes.len() < masker.longest + 3, "no more is held than has to be");
    }
    out
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

#[test]
fn forms_that_tools_print() {
    let masker = masker(&["p√ss/w\"o<rd&1+ ?"]);
    for shown in [
        "p√ss/w\"o<rd&1+ ?",
        // encodeURIComponent, a form, Go's url.PathEscape
        "p%E2%88%9Ass%2Fw%22o%3Crd%261%2B%20%3F",
        "p%e2%88%9ass%2fw%22o%3crd%261%2b+%3f",
        "p%E2%88%9Ass%2Fw%22o%3Crd&1+%20%3F",
        // JavaScript, PHP, Python, Go
        r#"p√ss/w\"o<rd&1+ ?"#,
        r#"p\u221ass\/w\"o<rd&1+ ?"#,
        r#"p\u221Ass/w\"o<rd&1+ ?"#,
        r#"p√ss/w\"o\u003crd\u00261+ ?"#,
    ] {
        assert_eq!(masked(&masker, &format!("a {shown} b")), "a *** b", "{shown}");
    }
    // A login by HTTP. What the neighbours have a part in may stay.
    let header = BASE64_STANDARD.encode("ann:p√ss/w\"o<rd&1+ ?");
    let shown = masked(&masker, &format!("Basic {header}"));
    assert!(shown.starts_with("Basic YW5uOn***") && shown.len() <= 20, "{shown}");
}

#[test]
fn keys_are_masked_line_by_line_and_as_a_whole() {
    let key = "-----BEGIN KEY-----\nb3BlbnNzaC1rZXktdjEA\nAAAABG5vbmUAAAAEbm9u\nx\n-----END KEY-----\n";
    let masker = masker(&[key]);
    assert_eq!(masked(&masker, "cat: AAAABG5vbmUAAAAEbm9u!"), "cat: ***!");
    assert_eq!(masked(&masker, "-----BEGIN KEY-----"), "-----BEGIN KEY-----");
    let json = serde_json::to_string(key).unwrap();
    assert_eq!(masked(&masker, &json), "\"***\\n\"");
    for width in [76, 64] {
        let encoded = BASE64_STANDARD.encode(key);
        for line in encoded.as_bytes().chunks(width) {
            let shown = masked(&masker, std::str::from_utf8(line).unwrap());
            assert!(shown.len() <= 6 && shown.starts_with("***"), "{shown}");
        }
    }
}

#[test]
fn docker_configurations_hold_logins() {
    let file = NamedTempFile::new().unwrap();
    let auth = BASE64_STANDARD.encode("ann:s3cr:t");
    let config =
        format!(r#"{{"auths": {{"registry.example": {{"auth": "{auth}"}}, "other": {{"identitytoken": "t0ken"}}}}}}"#);
    std::fs::write(file.path(), config).unwrap();
    let masker = Masker::new(&read(file.path()).unwrap()).unwrap().unwrap();
    let text = format!("login ann with s3cr:t or t0ken at registry.example, {auth}");
    assert_eq!(
        masked(&masker, &text),
        "login ann with *** or *** at registry.example, ***"
    );
}

#[test]
fn what_is_very_short_is_no_secret() {
    assert!(
        Masker::new(&[b"abc".to_vec(), b" \n".to_vec(), Vec::new()])
            .unwrap()
            .is_none()
    );
    assert_eq!(masked(&masker(&["abcd\n"]), "abcabcd\u{20ac}"), "abc***\u{20ac}");
}

#[test]
fn forms_that_overlap_are_masked_together() {
    let masker = masker(&["abcdef", "defghi"]);
    assert_eq!(masked(&masker, "-abcdefghi-abcdef"), "-***-***");
    let mut held = Held::default();
    let line = "x".repeat(5) + &"abcdefghi".repeat(100);
    let mut out = Vec::new();
    for piece in line.as_bytes().chunks(7) {
        out.extend(masker.mask_piece(&mut held, piece, false));
    }
    out.extend(masker.mask_piece(&mut held, b"", true));
    assert_eq!(out, masker.mask(line.as_bytes()).as_ref());
}

#[test]
fn a_long_secret_is_masked_in_plain() {
    let lines: Vec<String> = (0..3000).map(|number| format!("line number {number:05}")).collect();
    let masker = masker(&[&lines.join("\n")]);
    assert_eq!(masked(&masker, "> line number 02999 <"), "> *** <");
}

fn secret() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-c]{4,8}".prop_map(String::into_bytes),
        "[ -)+-~]{4,30}".prop_map(String::into_bytes),
        "[a-zà-ÿ/&<\"\\\\]{4,12}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 4..20),
    ]
    // Surrounding white space is no part of it, and lines are others' matter.
    .prop_map(|secret| {
        secret
            .into_iter()
            .filter(|byte| !b"\n*".contains(byte))
            .collect::<Vec<u8>>()
            .trim_ascii()
            .to_vec()
    })
    .prop_filter("long enough", |secret| secret.len() >= 4)
}

/// Forms as others make them.
fn shown(secret: &[u8], form: usize, before: &[u8], after: &[u8]) -> Vec<u8> {
    let around = || [before, secret, after].concat();
    let percent = |upper: bool| -> Vec<u8> {
        let encoded = secret.iter().map(|&byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ if upper => format!("%{byte:02X}"),
            _ => format!("%{byte:02x}"),
        });
        encoded.collect::<String>().into_bytes()
    };
    match form % 6 {
        0 => secret.to_vec(),
        1 => BASE64_STANDARD.encode(around()).into_bytes(),
        2 => BASE64_URL_SAFE_NO_PAD.encode(around()).into_bytes(),
        3 => percent(true),
        4 => percent(false),
        _ => match std::str::from_utf8(secret) {
            Ok(text) => {
                let quoted = serde_json::to_string(text).unwrap();
                quoted.as_bytes()[1..quoted.len() - 1].to_vec()
            }
            Err(_) => secret.to_vec(),
        },
    }
}

proptest! {
    #[test]
    fn no_form_of_a_secret_comes_through_however_it_is_cut(
        secrets in prop::collection::vec(secret(), 1..4),
        parts in prop::collection::vec(
            (any::<Index>(), 0_usize..6, "[a-d %]{0,6}", prop::collection::vec(any::<u8>(), 0..4), prop::collection::vec(any::<u8>(), 0..4)),
            0..6,
        ),
        cuts in prop::collection::vec(any::<Index>(), 0..8),
    ) {
        let masker = Masker::new(&secrets).unwrap().unwrap();
        let forms = forms::all(&secrets);
        let mut line = Vec::new();
        for (which, form, text, before, after) in &parts {
            line.extend_from_slice(text.as_bytes());
            let shown = shown(&secrets[which.index(secrets.len())], *form, before, after);
            // It is one of those that are known.
            prop_assert!(forms.iter().any(|form| contains(&shown, form)));
            line.extend(shown);
        }
        let masked = masker.mask(&line);
        prop_assert!(forms.iter().all(|form| !contains(&masked, form)));
        prop_assert!(masked.len() <= line.len());
        prop_assert_eq!(in_pieces(&masker, &line, &cuts), masked.into_owned());
    }

    #[test]
    fn text_without_a_secret_stays_as_it_is(
        secrets in prop::collection::vec(secret(), 1..4),
        text in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(any::<Index>(), 0..8),
    ) {
        let masker = Masker::new(&secrets).unwrap().unwrap();
        if forms::all(&secrets).iter().all(|form| !contains(&text, form)) {
            prop_assert_eq!(masker.mask(&text).into_owned(), text.clone());
            prop_assert_eq!(in_pieces(&masker, &text, &cuts), text);
        }
    }
}
