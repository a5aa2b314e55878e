//! Whether a text can be a private SSH key or a list of host keys. It is looked at closely enough to catch what people
//! mix up; whether a key works is between the server and ssh.

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::domain::spec::Invalid;

/// A private key as OpenSSH reads it, with its line ends set right.
pub(super) fn check_private_key(text: &str) -> Result<String, Invalid> {
    let expected = || {
        Invalid::new(
            "expected a private key file of OpenSSH, from `-----BEGIN OPENSSH PRIVATE KEY-----` to its end line",
        )
    };
    let text = text.replace("\r\n", "\n");
    let text = text.trim();
    if text.starts_with("ssh-") || text.starts_with("ecdsa-") || text.contains("BEGIN SSH2 PUBLIC KEY") {
        return Err(Invalid::new(
            "this is the public key; expected the private one, in the file without `.pub`",
        ));
    }
    if text.starts_with("PuTTY-User-Key-File") {
        return Err(Invalid::new(
            "expected a key of OpenSSH, not of PuTTY: convert it with `puttygen key.ppk -O private-openssh -o key`",
        ));
    }
    let (first, rest) = text.split_once('\n').ok_or_else(expected)?;
    let (body, last) = rest.rsplit_once('\n').ok_or_else(expected)?;
    let label = |line: &str, verb: &str| {
        let label = line.trim_end().strip_prefix("-----")?.strip_prefix(verb)?;
        Some(label.strip_suffix("-----")?.trim().to_owned())
    };
    let kind = label(first, "BEGIN").ok_or_else(expected)?;
    if !kind.ends_with("PRIVATE KEY") || label(last, "END").as_ref() != Some(&kind) {
        return Err(expected());
    }
    let encoded: String = body.lines().filter(|line| !line.contains(':')).map(str::trim).collect();
    let key = BASE64_STANDARD.decode(encoded);
    let locked = match &key {
        _ if kind.starts_with("ENCRYPTED") || body.contains("ENCRYPTED") => true,
        Ok(key) if kind == "OPENSSH PRIVATE KEY" => openssh_cipher(key).ok_or_else(expected)? != b"none",
        Ok(_) => false,
        Err(_) => return Err(expected()),
    };
    if locked {
        return Err(Invalid::new(
            "expected a key without a passphrase, because nobody is there to type it: `ssh-keygen -p -f key` removes it from a copy",
        ));
    }
    // ssh refuses a key whose last line has no end.
    Ok(format!("{text}\n"))
}

/// The cipher of a key in OpenSSH's own format (its PROTOCOL.key): `none` without a passphrase.
fn openssh_cipher(key: &[u8]) -> Option<&[u8]> {
    first_string(key.strip_prefix(b"openssh-key-v1\0")?)
}

/// A length in four bytes, and so many bytes (RFC 4251, section 5).
fn first_string(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

/// Host keys as `known_hosts` holds them: `[marker] hosts type key [comment]` (sshd(8)).
pub(super) fn check_known_hosts(text: &str) -> Result<String, Invalid> {
    let text = text.replace("\r\n", "\n");
    let mut entries = 0;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        entries += 1;
        if !is_host_key(line) {
            return Err(Invalid::new(format!(
                "line {} is not `host type key`, as in a file `known_hosts`",
                index + 1
            )));
        }
    }
    if entries == 0 {
        return Err(Invalid::new(
            "expected at least one line `host type key`, as in a file `known_hosts`",
        ));
    }
    Ok(format!("{}\n", text.trim()))
}

fn is_host_key(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace().peekable();
    words.next_if(|word| word.starts_with('@'));
    let (Some(_hosts), Some(kind), Some(key)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    let key = BASE64_STANDARD.decode(key);
    // The key repeats its type.
    key.is_ok_and(|key| first_string(&key) == Some(kind.as_bytes()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Made for these tests; it opens nothing.
    pub(in super::super) const PRIVATE_KEY: &str = "\
        -----BEGIN OPENSSH PRIVATE KEY-----\n\
        b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n\
        QyNTUxOQAAACDYQdMDQrqX+QdNmxtvl7oAEeyncfoFbg4oDwikviJXLQAAAJBSBF0xUgRd\n\
        MQAAAAtzc2gtZWQyNTUxOQAAACDYQdMDQrqX+QdNmxtvl7oAEeyncfoFbg4oDwikviJXLQ\n\
        AAAEDETJT5hLYFwE6IQjA8FT97An5UH8I9FxxtG2LTUwE6JthB0wNCupf5B02bG2+XugAR\n\
        7Kdx+gVuDigPCKS+IlctAAAACWtpbG4gdGVzdAECAwQ=\n\
        -----END OPENSSH PRIVATE KEY-----\n";
    const LOCKED_KEY: &str = "\
        -----BEGIN OPENSSH PRIVATE KEY-----\n\
        b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABCsQdri9r\n\
        j3wPXradnInsTIAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIFKn8iyCgYatiVKS\n\
        SHsfiBs+VvNhbl95i6K6dxvzMOFeAAAAkMK38lQcQrE45GHueWFWzPqZe/JE4Lc5K2VYu6\n\
        RlXcbd0CUTF+AvWeE76wNS7Td7cHuFf4n/jDUY+sB8f1vxq2lRJbIwJqdZbrjN8t24hruE\n\
        bnsAPnn33OtMkKxt8AKHVwX7IZeNEMQIKeX4Z1biJKntktkRI3MwfqpDx7yZDGRyQHYqKD\n\
        QinikTHYk8P/X9Uw==\n\
        -----END OPENSSH PRIVATE KEY-----\n";
    pub(in super::super) const KNOWN_HOSTS: &str =
        "git.example ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG3z2EEepuhYoHOEcgrOCUiYQactSvJshIIDeGc7ROvs\n";

    #[test]
    fn keys_are_told_from_what_is_none() {
        assert_eq!(check_private_key(PRIVATE_KEY).as_deref(), Ok(PRIVATE_KEY));
        let sloppy = format!("\n{}", PRIVATE_KEY.trim_end().replace('\n', "\r\n"));
        assert_eq!(check_private_key(&sloppy).as_deref(), Ok(PRIVATE_KEY));
        for (text, words) in [
            ("", "private key file"),
            ("hello", "private key file"),
            ("ssh-ed25519 AAAA me@host", "public key"),
            ("PuTTY-User-Key-File-3: ssh-ed25519\n", "puttygen"),
            (LOCKED_KEY, "passphrase"),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
                "passphrase",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
                "private key file",
            ),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----",
                "private key file",
            ),
            (&PRIVATE_KEY[..100], "private key file"),
        ] {
            let Invalid(message) = check_private_key(text).expect_err(text);
            assert!(message.contains(words), "{text}: {message}");
        }
        let pem = "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n";
        assert_eq!(check_private_key(pem).as_deref(), Ok(pem));
    }

    #[test]
    fn host_keys_are_lines_of_known_hosts() {
        assert_eq!(check_known_hosts(KNOWN_HOSTS).as_deref(), Ok(KNOWN_HOSTS));
        let key = KNOWN_HOSTS.trim_end().split_once(' ').expect("a line").1;
        for good in [
            format!("# a comment\n\n[git.example]:2222,10.0.0.1 {key} comment\r\n"),
            format!("@cert-authority *.example {key}"),
            format!("|1|c2FsdA==|aGFzaA== {key}"),
        ] {
            assert!(check_known_hosts(&good).is_ok(), "{good}");
        }
        for (bad, words) in [
            (String::new(), "at least one line"),
            ("# nothing".to_owned(), "at least one line"),
            (format!("{KNOWN_HOSTS}git.example\n"), "line 2"),
            (key.to_owned(), "line 1"),
            ("git.example ssh-ed25519 AAAA".to_owned(), "line 1"),
        ] {
            let Invalid(message) = check_known_hosts(&bad).expect_err(&bad);
            assert!(message.contains(words), "{bad}: {message}");
        }
    }
}
