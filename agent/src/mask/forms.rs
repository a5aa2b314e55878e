//! The forms in which a secret may show.

use std::{collections::BTreeSet, fmt::Write as _, fs, io, path::Path};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::Value;

/// A shorter secret isn't masked: it would be found everywhere.
const MIN: usize = 4;
/// The same for a line of a secret that has several.
const MIN_LINE: usize = 6;
/// A longer secret is masked line by line as it is, but not in other forms: they take memory.
const MAX: usize = 16 << 10;
/// A longer line is known by its beginning.
const MAX_LINE: usize = 16 << 10;

/// How many bytes `base64` and PEM put on one line.
const WRAPPED: [usize; 2] = [57, 48];

/// Reads the secrets in a file: what it holds and, where it is a Docker configuration, the logins in it.
pub(crate) fn read(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let content = fs::read(path)?;
    let mut secrets = logins(&content);
    secrets.push(content);
    Ok(secrets)
}

fn logins(config: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let Ok(Value::Object(config)) = serde_json::from_slice(config) else {
        return found;
    };
    let Some(Value::Object(registries)) = config.get("auths") else {
        return found;
    };
    for registry in registries.values() {
        for name in ["auth", "password", "identitytoken", "registrytoken"] {
            let Some(Value::String(value)) = registry.get(name) else {
                continue;
            };
            found.push(value.as_bytes().to_vec());
            if name == "auth"
                && let Ok(login) = BASE64_STANDARD.decode(value)
            {
                let password = login
                    .iter()
                    .position(|&byte| byte == b':')
                    .map(|colon| &login[colon + 1..]);
                found.extend(password.map(<[u8]>::to_vec));
                found.push(login);
            }
        }
    }
    found
}

/// All forms of these secrets that are worth looking for.
pub(super) fn all(secrets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut forms = BTreeSet::new();
    for secret in secrets {
        let whole = secret.trim_ascii();
        if whole.len() < MIN {
            continue;
        }
        let in_all_forms = whole.len() <= MAX;
        let lines: Vec<&[u8]> = whole.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).collect();
        for &line in &lines {
            let min = if lines.len() == 1 { MIN } else { MIN_LINE };
            if line.len() < min || line.starts_with(b"-----") {
                continue;
            }
            forms.insert(line[..line.len().min(MAX_LINE)].to_vec());
            if in_all_forms {
                encode(line, &mut forms);
            }
        }
        if lines.len() > 1 && in_all_forms {
            encode(whole, &mut forms);
            for width in WRAPPED {
                let wrapped = secret.chunks(width).filter(|chunk| chunk.len() >= MIN);
                forms.extend(wrapped.map(|chunk| BASE64_STANDARD_NO_PAD.encode(chunk).into_bytes()));
            }
        }
    }
    // An encoding of nothing secret, such as the padding of one, may be left.
    forms.retain(|form| form.len() >= MIN);
    forms.into_iter().collect()
}

fn encode(secret: &[u8], forms: &mut BTreeSet<Vec<u8>>) {
    for before in 0..3 {
        forms.extend(base64_behind(before, secret));
    }
    for kept in URL_KEPT {
        for hex in [b"0123456789ABCDEF", b"0123456789abcdef"] {
            forms.insert(percent(secret, kept, hex, false));
            forms.insert(percent(secret, kept, hex, true));
        }
    }
    if let Ok(text) = std::str::from_utf8(secret) {
        for escapes in JSON {
            forms.insert(json(text, escapes));
        }
    }
}

/// What is the same in every encoding of a text that holds the secret behind so many bytes (modulo 3), in both alphabets.
fn base64_behind(before: usize, secret: &[u8]) -> [Vec<u8>; 2] {
    let padded = [&b"\0\0"[..before], secret].concat();
    // Characters that the bytes before have a part in, and those that the bytes after have.
    let start = (before * 8).div_ceil(6);
    let end = padded.len() * 8 / 6;
    [
        BASE64_STANDARD_NO_PAD.encode(&padded),
        BASE64_URL_SAFE_NO_PAD.encode(&padded),
    ]
    .map(|text| text.as_bytes()[start..end].to_vec())
}

/// What encoders leave as it is besides letters and digits: RFC 3986, `encodeURIComponent`, HTML forms, and paths and
/// user information in URLs.
const URL_KEPT: [&[u8]; 5] = [b"-_.~", b"-_.~!'()*", b"-_.*", b"-_.~$&+=:@", b"-_.~$&+,;="];

fn percent(secret: &[u8], kept: &[u8], hex: &[u8; 16], plus: bool) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(secret.len() * 3);
    for &byte in secret {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            encoded.push(byte);
        } else if byte == b' ' && plus {
            encoded.push(b'+');
        } else {
            encoded.extend([b'%', hex[usize::from(byte >> 4)], hex[usize::from(byte & 15)]]);
        }
    }
    encoded
}

/// What a JSON encoder escapes beyond what it has to.
#[derive(Clone, Copy)]
struct Escapes {
    /// These as `\u003c`: Go's encoder takes HTML into account.
    as_code: &'static str,
    /// `/` as `\/`, as PHP does.
    slash: bool,
    /// All but ASCII, as Python does.
    ascii: bool,
    /// Codes in upper case.
    upper: bool,
}

const LEAST: Escapes = Escapes {
    as_code: "",
    slash: false,
    ascii: false,
    upper: false,
};

const JSON: [Escapes; 6] = [
    LEAST,
    Escapes { slash: true, ..LEAST },
    Escapes {
        as_code: "<>&",
        ..LEAST
    },
    Escapes { ascii: true, ..LEAST },
    Escapes {
        ascii: true,
        upper: true,
        ..LEAST
    },
    Escapes {
        ascii: true,
        slash: true,
        ..LEAST
    },
];

fn json(text: &str, escapes: Escapes) -> Vec<u8> {
    let mut encoded = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        match c {
            '"' => encoded.push_str("\\\""),
            '\\' => encoded.push_str("\\\\"),
            '\n' => encoded.push_str("\\n"),
            '\r' => encoded.push_str("\\r"),
            '\t' => encoded.push_str("\\t"),
            '\u{8}' => encoded.push_str("\\b"),
            '\u{c}' => encoded.push_str("\\f"),
            '/' if escapes.slash => encoded.push_str("\\/"),
            c if c < ' ' || escapes.as_code.contains(c) || (escapes.ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String can't fail.
                    let _ = if escapes.upper {
                        write!(encoded, "\\u{unit:04X}")
                    } else {
                        write!(encoded, "\\u{unit:04x}")
                    };
                }
            }
            c => encoded.push(c),
        }
    }
    encoded.into_bytes()
}
