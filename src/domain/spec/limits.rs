//! What this installation accepts, and what it assumes where a request is silent: `[limits]` in the configuration.

use serde::{Deserialize, Serialize};

use super::{Builder, CpuMillis, Invalid, MemoryBytes, Platform, Resources};

/// Defaults and limits for requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Builders that can be asked for; the first is the default.
    pub builders: Vec<Builder>,
    /// Platforms that can be asked for; the first is the default.
    pub platforms: Vec<Platform>,
    /// What a build gets where the request doesn't say.
    pub default_resources: Resources,
    /// The most that a build can ask for.
    pub max_resources: Resources,
    /// How long a running attempt may take where the request doesn't say, in seconds.
    pub default_timeout_seconds: u32,
    /// The longest timeout that can be asked for, in seconds.
    pub max_timeout_seconds: u32,
    /// Most names for one image.
    pub max_images: usize,
    /// Most build arguments.
    pub max_build_args: usize,
    /// Most bytes of all build arguments, names and values.
    pub max_build_args_bytes: usize,
    /// Most labels.
    pub max_labels: usize,
    /// Most bytes of all annotations, as JSON.
    pub max_annotations_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Self {
            builders: vec![Builder::Buildkit],
            platforms: vec![Platform::linux_amd64()],
            default_resources: Resources {
                cpu: CpuMillis(2000),
                memory: MemoryBytes(4 * GIB),
                disk: MemoryBytes(20 * GIB),
            },
            max_resources: Resources {
                cpu: CpuMillis(16_000),
                memory: MemoryBytes(64 * GIB),
                disk: MemoryBytes(200 * GIB),
            },
            default_timeout_seconds: 3600,
            max_timeout_seconds: 24 * 3600,
            max_images: 16,
            max_build_args: 100,
            max_build_args_bytes: 32 * 1024,
            max_labels: 64,
            max_annotations_bytes: 16 * 1024,
        }
    }
}

impl Limits {
    /// Checks that the limits can be met at all, so that the defaults of a request are never refused.
    pub fn check(&self) -> Result<(), Invalid> {
        let Resources { cpu, memory, disk } = self.default_resources;
        let max = self.max_resources;
        if self.builders.is_empty() {
            Err(Invalid::new("`builders` is empty: name at least one"))
        } else if self.platforms.is_empty() {
            Err(Invalid::new(
                "`platforms` is empty: name at least one, such as `linux/amd64`",
            ))
        } else if cpu > max.cpu || memory > max.memory || disk > max.disk {
            Err(Invalid::new("`default_resources` is more than `max_resources`"))
        } else if self.default_timeout_seconds == 0 || self.default_timeout_seconds > self.max_timeout_seconds {
            Err(Invalid::new(
                "`default_timeout_seconds` is not between 1 and `max_timeout_seconds`",
            ))
        } else if self.max_images == 0 {
            Err(Invalid::new("`max_images` is 0: allow at least one"))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_can_be_met() {
        assert_eq!(Limits::default().check(), Ok(()));
    }

    #[test]
    fn limits_that_refuse_their_own_defaults_are_refused() {
        let bad: [fn(&mut Limits); 6] = [
            |limits| limits.builders.clear(),
            |limits| limits.platforms.clear(),
            |limits| limits.max_resources.memory = MemoryBytes(1),
            |limits| limits.max_timeout_seconds = 1,
            |limits| limits.default_timeout_seconds = 0,
            |limits| limits.max_images = 0,
        ];
        for change in bad {
            let mut limits = Limits::default();
            change(&mut limits);
            assert!(limits.check().is_err(), "{limits:?}");
        }
    }

    #[test]
    fn a_file_may_set_some_and_must_not_misspell_any() {
        let limits: Limits = serde_json::from_str(r#"{"max_images": 2}"#).expect("valid");
        assert_eq!(
            limits,
            Limits {
                max_images: 2,
                ..Limits::default()
            }
        );
        assert!(serde_json::from_str::<Limits>(r#"{"max_image": 2}"#).is_err());
    }
}
