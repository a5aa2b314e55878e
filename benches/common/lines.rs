//! What builds print.

use std::fmt::Write as _;

/// Output as of a package manager and a compiler: lines of about 100 bytes that resemble each other.
pub(crate) struct Lines {
    noise: u64,
    number: u64,
}

impl Lines {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { noise: seed, number: 0 }
    }

    fn random(&mut self) -> u64 {
        self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.noise >> 33
    }

    /// Appends a line with its end.
    pub(crate) fn write(&mut self, out: &mut String) {
        const WORDS: [&str; 8] = [
            "crypto", "server", "parser", "runtime", "client", "codec", "storage", "metrics",
        ];
        self.number += 1;
        let (a, b, c) = (self.random(), self.random(), self.random());
        let word = |n: u64| WORDS[usize::try_from(n % 8).unwrap_or_default()];
        let _ = writeln!(
            out,
            "#{} {}.{:03} Compiling {}-{} v{}.{}.{} (/src/crates/{}/{:08x}) [{}/2400]",
            a % 40,
            self.number / 50,
            self.number % 1000,
            word(a),
            word(b),
            a % 3,
            b % 20,
            c % 10,
            word(c),
            c,
            self.number % 2400,
        );
    }
}
