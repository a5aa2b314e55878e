//! The commands.

pub(super) mod build;
pub(super) mod builds;
pub(super) mod logs;
pub(super) mod secrets;
pub(super) mod tokens;

use super::{api::Api, args::Common, error::ClientError, screen::Screen, settings::Settings};

/// What every command works with.
pub(super) struct Session {
    pub(super) settings: Settings,
    pub(super) api: Api,
    pub(super) screen: Screen,
    /// Whether the answer is wanted as JSON.
    pub(super) json: bool,
}

impl Session {
    pub(super) fn open(common: &Common) -> Result<Self, ClientError> {
        let mut screen = Screen::new(common.output.color);
        let mut warnings = Vec::new();
        let settings = Settings::resolve(&common.connection, |warning| warnings.push(warning))?;
        for warning in warnings {
            screen.say(&format!("kiln: {warning}"))?;
        }
        Ok(Self {
            api: Api::new(&settings)?,
            settings,
            screen,
            json: common.output.json,
        })
    }

    /// Prints a document.
    pub(super) fn document(&mut self, document: &serde_json::Value) -> Result<(), ClientError> {
        Ok(self.screen.print(&format!("{document}\n"))?)
    }
}
